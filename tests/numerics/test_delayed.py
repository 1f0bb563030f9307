import torch

from seqloom.numerics.block_scales import amax_of
from seqloom.numerics.delayed import AmaxHistory
from seqloom.numerics.quantized import quantize
from seqloom.numerics.scheme import FP8_TENSOR


def test_the_scale_follows_the_greatest_of_the_history():
    history, own = AmaxHistory(length=3, margin=1), torch.tensor(5.0)
    used = []
    for amax in (0.0, 2.0, 7.0, 1.0, 0.0, 0.5, 0.25):
        used.append(float(history.amax(own)))
        history.record(torch.tensor(amax))
    assert used == [5, 5, 4, 14, 14, 14, 2]
    assert history.recent.tolist() == [0.25, 0.5, 0.0]


def test_a_growing_tensor_saturates_and_a_steady_one_is_scaled_as_by_its_own_amax():
    x = torch.randn(32, 64, generator=torch.Generator().manual_seed(0))
    history = AmaxHistory(length=4)
    history.record(amax_of(x))
    for like in (x, x / 2):
        found = quantize(like, FP8_TENSOR, amax=history.amax(amax_of(like)))
        assert found.global_scale == quantize(x, FP8_TENSOR).global_scale
    grown = quantize(3 * x, FP8_TENSOR, amax=history.amax(amax_of(3 * x))).dequantize()
    torch.testing.assert_close(grown.abs().max(), x.abs().max())
