import pytest
import torch
from torch import Tensor

from seqloom.numerics.quantized import quantize
from seqloom.numerics.scheme import FP8_1X128_FP32, FP8_TENSOR, NVFP4, NVFP4_FOUR_OVER_SIX
from seqloom.ops.kernels import chosen
from seqloom.ops.quantize import Rounded, relative_errors, rounded


def numbers(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("form", ["native", "torch", "reference"])
@pytest.mark.parametrize("scheme", [FP8_TENSOR, FP8_1X128_FP32, NVFP4, NVFP4_FOUR_OVER_SIX])
def test_every_form_gives_what_the_scheme_defines(form, scheme, monkeypatch):
    x = numbers(33, 50).requires_grad_()
    if form == "native" and chosen("quantize", x.device, x.dtype, x) != "native":
        pytest.skip("no native kernels")
    monkeypatch.setenv("SEQLOOM_KERNELS", f"quantize={form}")
    found, expected = rounded(x, scheme, 0, random=7), quantize(x.detach(), scheme, 0, random=7)
    assert torch.equal(found.values, expected.values())
    assert torch.equal(found.scale, expected.global_scale)
    assert found.values.dtype == (torch.float32 if scheme is FP8_1X128_FP32 else torch.bfloat16)
    assert not found.values.requires_grad
    torch.testing.assert_close(found.values.float() * found.scale, expected.dequantize(), rtol=0, atol=0)


def test_the_native_form_runs_where_there_is_one(monkeypatch):
    x, seen = numbers(4, 32), []
    if chosen("quantize", x.device, x.dtype, x) != "native":
        pytest.skip("no native kernels")
    from seqloom.ops.native import quantize as native

    form = native.rounded_native
    monkeypatch.setattr(native, "rounded_native", lambda *given: seen.append(given[1]) or form(*given))
    rounded(x, NVFP4, 1)
    rounded(x, NVFP4_FOUR_OVER_SIX, 1)
    assert seen == [NVFP4]


@pytest.mark.parametrize("form", ["native", "torch"])
def test_relative_errors_by_hand(form, monkeypatch):
    x = torch.tensor([[1.0, 0.0, -2.0], [4.0, 8.0, 16.0], [1.0, 0.0, torch.nan]])
    values = torch.tensor([[0.5, 3.0, -1.0], [1.0, 4.0, 10.0], [0.0, 0.0, 0.0]])
    if form == "native" and chosen("quantize", x.device, x.dtype, x) != "native":
        pytest.skip("no native kernels")
    monkeypatch.setenv("SEQLOOM_KERNELS", f"quantize={form}")
    result = Rounded(values, torch.tensor(2.0))
    sums, counts = relative_errors(x, result, 2, 2)
    torch.testing.assert_close(sums, torch.tensor([0.5, 0.25, 1.0, torch.nan]), equal_nan=True)
    assert counts.tolist() == [3, 2, 1, 1]
    sums, counts = relative_errors(x[:2], Rounded(values[:2], result.scale))
    assert (sums.tolist(), counts.tolist()) == ([0.75], [5])
    sums, counts = relative_errors(x[:2], Rounded(values[:2], result.scale), 1)
    assert (sums.tolist(), counts.tolist()) == ([0.0, 0.75], [2, 3])
