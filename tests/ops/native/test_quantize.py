"""Fake quantization in C++ against its definition, bit for bit, over sizes that fit no vector, block or strip."""

import pytest
import torch
from torch import Tensor

from native_checks import guarded
from seqloom.numerics.hadamard import DEFAULT_SIGNS
from seqloom.numerics.scheme import FP8_1X128, FP8_TENSOR, NVFP4, NVFP4_2D, SCHEMES, Scheme
from seqloom.ops.native import quantize as native
from seqloom.ops.native.quantize import has_native_form, relative_errors_native, rounded_native
from seqloom.ops.quantize import Rounded, relative_errors_reference, rounded_reference

FP32, BF16 = torch.float32, torch.bfloat16
KEY = 0xFEDCBA9876543210
OTHERS = {
    "mxfp8_e5m2": Scheme("e5m2", 32, 1, "e8m0_ceil"),
    "fp8_block_row": Scheme("e5m2", 48, None, "power_of_two"),
    "fp8_tensor_power_of_two": Scheme("e4m3", None, None, "power_of_two"),
}
SERVED = {name: scheme for name, scheme in {**SCHEMES, **OTHERS}.items() if has_native_form(scheme)}
WAYS = {
    "nearest": {},
    "bytes": {"random": KEY},
    "24 bits": {"random": 5, "bits": 24},
    "hadamard": {"signs": DEFAULT_SIGNS},
    "hadamard and bytes": {"signs": DEFAULT_SIGNS, "random": KEY},
    "hadamard of 32": {"signs": DEFAULT_SIGNS * 2},
}


def numbers(*shape: int, seed: int = 0) -> Tensor:
    """Spread over many powers of two."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator) * torch.exp(2 * torch.randn(*shape, generator=generator))


def alike(one: Rounded, other: Rounded) -> None:
    torch.testing.assert_close(one.values, other.values, rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(one.scale, other.scale, rtol=0, atol=0, equal_nan=True)


def test_the_schemes_without_a_native_form() -> None:
    assert set(SCHEMES) - set(SERVED) == {"nvfp4_ptq", "nvfp4_four_over_six", "nvfp4_mse"}
    assert not has_native_form(Scheme("e4m3", 24, 1))
    assert not has_native_form(Scheme("e4m3", 16, 8))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", SERVED)
def test_equals_the_definition(name: str, way: str) -> None:
    for shape, axis, dtype in (
        ((1, 5), 1, FP32), ((37, 71), 0, FP32), ((37, 71), 1, BF16), ((131, 530), 1, FP32), ((150, 290), 0, BF16),
    ):  # fmt: skip
        x = numbers(*shape).to(dtype)
        with guarded():
            mine = rounded_native(x, SERVED[name], axis, **WAYS[way])
        alike(mine, rounded_reference(x, SERVED[name], axis, **WAYS[way]))


@pytest.mark.parametrize("name", SERVED)
def test_what_is_not_finite_not_normal_or_not_there(name: str) -> None:
    x = numbers(48, 160)
    x[3, 5], x[20, 40], x[35, 150] = torch.nan, torch.inf, -torch.inf
    x[8, :32], x[16:32, 64:80], x[9, 32:64] = 0, 0, torch.nan
    x[10], x[11], x[12] = 1e-40 * x[10], 1e36 * x[11], -0.0
    tiny = x.nan_to_num(0, 0, 0)
    for each in (x, tiny, tiny * 1e-38, torch.zeros(20, 20), -torch.zeros(20, 20), torch.full((3, 40), torch.nan)):
        for axis in (0, 1):
            for way in ({}, {"random": KEY}):
                alike(
                    rounded_native(each, SERVED[name], axis, **way), rounded_reference(each, SERVED[name], axis, **way)
                )


def test_the_largest_magnitude_of_a_whole_of_which_this_is_a_part() -> None:
    x = numbers(40, 64)
    for scheme in (NVFP4, NVFP4_2D, FP8_TENSOR, SCHEMES["gam_128x128"]):
        for amax in (3 * x.abs().amax(), x.abs().amax() / 3):
            for way in ({}, {"signs": DEFAULT_SIGNS}):
                alike(rounded_native(x, scheme, 0, amax, **way), rounded_reference(x, scheme, 0, amax, **way))


@pytest.mark.parametrize("name", ["fp8_tensor", "fp8_row", "fp8_1x128", "nvfp4", "nvfp4_2d"])
def test_any_layout_and_number_of_threads(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    scheme, x = SCHEMES[name], numbers(150, 300)
    wide = torch.full((150, 400), torch.nan)
    wide[:, 3:303] = x
    spread = x.repeat_interleave(2, 1)[:, ::2]
    for axis in (0, 1):
        for way in WAYS.values():
            expected = rounded_native(x, scheme, axis, **way)
            for threads in (1, 3):
                monkeypatch.setattr(native, "threads", lambda threads=threads: threads)
                for layout in (x, x.T.contiguous().T, wide[:, 3:303], spread):
                    alike(rounded_native(layout, scheme, axis, **way), expected)
    assert torch.equal(wide[:, 3:303], x)


def test_nothing_gives_nothing() -> None:
    for scheme in (FP8_TENSOR, SCHEMES["fp8_row"], FP8_1X128, NVFP4):
        for shape in ((0, 16), (16, 0)):
            assert rounded_native(torch.zeros(shape), scheme, 1).values.shape == shape


@pytest.mark.parametrize("formats", [(FP32, FP32), (FP32, BF16), (BF16, FP32), (BF16, BF16)])
@pytest.mark.parametrize("part", [(128, 128), (1, 128), (50, 7), (150, 300), (150, 1)])
def test_relative_errors(part: tuple[int, int], formats: tuple[torch.dtype, torch.dtype], monkeypatch) -> None:
    x = numbers(150, 300).to(formats[0])
    x[x.abs() < 0.1] = 0
    result = rounded_native(x, FP8_TENSOR, 1)
    result = Rounded(result.values.to(formats[1]), result.scale)
    sums, counts = relative_errors_reference(x, result, *part)
    once = relative_errors_native(x, result, *part)
    for threads in (1, 3):
        monkeypatch.setattr(native, "threads", lambda threads=threads: threads)
        again = relative_errors_native(x, result, *part)
        assert all(map(torch.equal, again, once))
        turned = relative_errors_native(x.T.contiguous().T, result, *part)
        for mine in (again, turned):
            assert torch.equal(mine[1], counts)
            torch.testing.assert_close(mine[0], sums, rtol=2e-6, atol=0)
    x[140, 200] = torch.nan
    broken = relative_errors_native(x, result, *part)[0].isnan()
    assert torch.equal(broken, relative_errors_reference(x, result, *part)[0].isnan())
    assert broken.sum() == 1
