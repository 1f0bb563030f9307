"""Products in FP8 units, here those of torch on the CPU, are the emulated ones up to the order of sums."""

import pytest
import torch

from seqloom.core.errors import ConfigError
from seqloom.numerics.place import Clock, Place
from seqloom.numerics.precision import PrecisionConfig
from seqloom.numerics.quantized import quantize
from seqloom.numerics.recipes import PRODUCTS, products
from seqloom.numerics.scheme import FP8_1X128, FP8_128X128, FP8_ROW, MXFP8, NVFP4
from seqloom.ops.quantized_linear import quantized_linear
from seqloom.ops.scaled_mm import FP8, kind_of, refuse_emulation, runs, scaled_mm

CPU = torch.device("cpu")


@pytest.mark.skipif(not runs("tensor", "cpu"), reason="this torch has no FP8 products on the CPU")
def test_all_three_products_equal_the_emulated_ones():
    torch.manual_seed(0)
    x, w, dy = torch.randn(21, 40).bfloat16(), torch.randn(24, 40), 1e-4 * torch.randn(21, 24).bfloat16()
    results = []
    for hardware in ("require", "emulate"):
        given, weight = x.clone().requires_grad_(), w.clone().requires_grad_()
        y = quantized_linear(given, weight, PRODUCTS["fp8"], Place("w", Clock(), hardware))
        y.backward(dy)
        results.append((y.detach(), given.grad, weight.grad))
    for real, emulated in zip(*results, strict=True):
        assert real.dtype == emulated.dtype
        torch.testing.assert_close(
            real.float(), emulated.float(), rtol=2**-7, atol=2**-10 * float(emulated.abs().max())
        )


@pytest.mark.skipif(not runs("row", "cpu"), reason="this torch has no FP8 products by rows on the CPU")
def test_scales_of_rows_are_applied_after_the_sum():
    torch.manual_seed(0)
    a, b = torch.randn(19, 40) * torch.logspace(-3, 3, 19)[:, None], torch.randn(24, 40)
    left, right = quantize(a, FP8_ROW, 1), quantize(b, FP8_ROW, 1)
    parts = [(q.codes.view(FP8["e4m3"]), q.global_scale, q.block_scale) for q in (left, right)]
    y = scaled_mm(*parts[0], *parts[1], torch.float32, fast=False)
    torch.testing.assert_close(y, left.dequantize() @ right.dequantize().mT, rtol=1e-5, atol=1e-5)


def test_only_what_the_units_take_is_sent_there():
    assert [kind_of(s) for s in (FP8_ROW, FP8_1X128, FP8_128X128, MXFP8, NVFP4, None)] == [
        "row", "block", "block", None, None, None,
    ]  # fmt: skip
    assert not runs("block", "cpu")


def test_required_hardware_that_is_not_here_is_an_error():
    for recipe in ("nvfp4", "fp8_blockwise", "mor_tensor"):
        with pytest.raises(ConfigError, match=r"hardware = 'require': cpu cannot multiply in"):
            refuse_emulation(CPU, PrecisionConfig(recipe=recipe, hardware="require"))
    if runs("tensor", "cpu"):
        refuse_emulation(CPU, PrecisionConfig(recipe="fp8_nemotron_h", hardware="require"))


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["fp8", "fp8_blockwise"])
def test_units_of_a_gpu_equal_the_emulation(name: str):
    torch.manual_seed(0)
    device = torch.device("cuda")
    how = products(name)
    if not runs(kind_of(how.forward[0].scheme) or "", "cuda"):
        pytest.skip("this GPU has no such units")
    x, w = torch.randn(384, 512, device=device).bfloat16(), torch.randn(256, 512, device=device)
    dy, results = torch.randn(384, 256, device=device).bfloat16(), []
    for hardware in ("require", "emulate"):
        given, weight = x.clone().requires_grad_(), w.clone().requires_grad_()
        y = quantized_linear(given, weight, how, Place("w", Clock(), hardware))
        y.backward(dy)
        results.append((y.detach(), given.grad, weight.grad))
    for real, emulated in zip(*results, strict=True):
        assert (real - emulated).norm() < 2e-3 * emulated.norm() + 2**-8 * emulated.norm()
