"""Products in FP8 units, here those of torch on the CPU, are the emulated ones up to the order of sums; those that no
machine here has are given what torch asks for, and would compute the same by its description of the operands."""

import pytest
import torch
import torch.nn.functional as F

from seqloom.core.errors import ConfigError
from seqloom.numerics.place import Clock, Place
from seqloom.numerics.precision import PrecisionConfig
from seqloom.numerics.quantized import quantize
from seqloom.numerics.recipes import PRODUCTS, products
from seqloom.numerics.scheme import FP8_1X128, FP8_128X128, FP8_ROW, GAM_128X128, MXFP4, MXFP8, NVFP4, NVFP4_PTQ
from seqloom.ops import scaled_mm as module
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


E2M1 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])
scaled_product = F.scaled_mm


def units(a, b, scales_a, recipe_a, scales_b, recipe_b, order_a, order_b, output_dtype):
    """a b as torch describes its operands; its own checks come first, which on tensors without memory are those of a
    GPU."""
    bare = [[each.to("meta") for each in scales] for scales in (scales_a, scales_b)]
    scaled_product(
        a.to("meta"), b.to("meta"), bare[0], recipe_a, bare[1], recipe_b, order_a, order_b, output_dtype=output_dtype
    )
    results = []
    for numbers, scales in ((a, scales_a), (b.mT, scales_b)):
        if numbers.dtype == torch.float4_e2m1fn_x2:
            codes, side = numbers.view(torch.uint8), 16
            values = E2M1[torch.stack((codes & 15, codes >> 4), -1).flatten(1).long()]
        else:
            values, side = numbers.float(), 32
        rows, blocks = torch.arange(len(values))[:, None], torch.arange(values.shape[1] // side)[None]
        tile = rows // 128 * -(-blocks.shape[1] // 4) + blocks // 4
        scale = scales[0][tile * 512 + rows % 32 * 16 + rows // 32 % 4 * 4 + blocks % 4].float()
        results.append(values * scale.repeat_interleave(side, 1) * (scales[1] if len(scales) > 1 else 1.0))
    return (results[0] @ results[1].mT).to(output_dtype)


@pytest.mark.parametrize("name", ["nvfp4", "mxfp8"])
def test_units_for_stored_scales_are_asked_as_torch_describes_them(name: str, monkeypatch: pytest.MonkeyPatch):
    torch.manual_seed(0)
    x, w, dy = torch.randn(21, 152).bfloat16(), torch.randn(88, 152), 1e-4 * torch.randn(21, 88).bfloat16()
    asked, results = [], []
    monkeypatch.setattr(module, "runs", lambda kind, device: kind == name)
    monkeypatch.setattr(F, "scaled_mm", lambda *given, **more: asked.append(given[3]) or units(*given, **more))
    for hardware in ("require", "emulate"):
        given, weight = x.clone().requires_grad_(), w.clone().requires_grad_()
        y = quantized_linear(given, weight, PRODUCTS[name], Place("w", Clock(), hardware))
        y.backward(dy)
        results.append((y.detach(), given.grad, weight.grad))
    assert len(asked) == 3
    for real, emulated in zip(*results, strict=True):
        assert real.dtype == emulated.dtype
        torch.testing.assert_close(
            real.float(), emulated.float(), rtol=2**-7, atol=2**-12 * float(emulated.abs().max())
        )


def test_only_what_the_units_take_is_sent_there():
    schemes = (FP8_ROW, FP8_1X128, FP8_128X128, MXFP8, NVFP4, NVFP4_PTQ, MXFP4, GAM_128X128, None)
    kinds = ["row", "block", "block", "mxfp8", "nvfp4", None, None, None, None]
    assert [kind_of(scheme) for scheme in schemes] == kinds
    assert not any(runs(kind, "cpu") for kind in ("block", "mxfp8", "nvfp4"))


def test_required_hardware_that_is_not_here_is_an_error():
    for recipe in ("nvfp4", "fp8_blockwise", "mor_tensor"):
        with pytest.raises(ConfigError, match=r"hardware = 'require': cpu cannot multiply in"):
            refuse_emulation(CPU, PrecisionConfig(recipe=recipe, hardware="require"))
    if runs("tensor", "cpu"):
        refuse_emulation(CPU, PrecisionConfig(recipe="fp8_nemotron_h", hardware="require"))


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["fp8", "fp8_blockwise", "mxfp8", "nvfp4"])
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
