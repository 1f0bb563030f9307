import torch

from seqloom.numerics.block_scales import amax_of
from seqloom.numerics.delayed import AmaxHistory
from seqloom.numerics.quantized import quantize
from seqloom.numerics.scheme import FP8_TENSOR


def test_the_scale_follows_the_greatest_of_the_window():
    history = AmaxHistory(window=3, margin=1)
    seen = [2.0, 7.0, 1.0, torch.inf, torch.nan, 4.0, 0.5]
    used = []
    for amax in seen:
        used.append(float(history.amax()))
        history.record(torch.tensor(amax))
    assert used == [0, 4, 14, 14, 14, 2, 8]


def test_a_growing_tensor_saturates_and_a_steady_one_is_scaled_as_by_its_own_amax():
    x = torch.randn(32, 64, generator=torch.Generator().manual_seed(0))
    history = AmaxHistory(window=4)
    assert quantize(x, FP8_TENSOR, amax=history.amax()).global_scale == 1
    history.record(amax_of(x))
    assert torch.equal(quantize(x, FP8_TENSOR, amax=history.amax()).codes, quantize(x, FP8_TENSOR).codes)
    grown = quantize(3 * x, FP8_TENSOR, amax=history.amax()).dequantize()
    torch.testing.assert_close(grown.abs().max(), x.abs().max())
