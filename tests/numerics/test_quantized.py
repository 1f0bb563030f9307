import pytest
import torch
from torch import Tensor

from seqloom.numerics.block_scales import amax_of
from seqloom.numerics.elements import E4M3, decode, e8m0_value
from seqloom.numerics.hadamard import DEFAULT_SIGNS, hadamard
from seqloom.numerics.packing import pack, swizzle
from seqloom.numerics.quantized import Quantized, quantize
from seqloom.numerics.scheme import (
    FP8_1X128,
    FP8_128X128_FP32,
    FP8_ROW,
    FP8_TENSOR,
    FP8_TENSOR_E5M2,
    GAM_128X128,
    MXFP4,
    MXFP4_FLOOR,
    MXFP8,
    MXFP8_FLOOR,
    NVFP4,
    NVFP4_2D,
    NVFP4_FOUR_OVER_SIX,
    NVFP4_MSE,
    NVFP4_PTQ,
    SCHEMES,
    Scheme,
)

ALL = pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def wide(rows: int, columns: int) -> Tensor:
    """Numbers whose rows and columns differ by orders of magnitude."""
    scale = 2.0 ** torch.randint(-12, 12, (rows + columns,), generator=torch.Generator().manual_seed(9))
    return normal(rows, columns) * scale[:rows, None] * scale[rows:]


def same(left: Quantized, right: Quantized, transposed: bool = False) -> bool:
    def turn(x: Tensor) -> Tensor:
        return x.T if transposed else x

    assert (left.block_codes is None) == (right.block_codes is None)
    return (
        torch.equal(left.codes, turn(right.codes))
        and torch.equal(left.block_scale, turn(right.block_scale))
        and torch.equal(left.global_scale, right.global_scale)
        and (
            left.block_codes is None
            or right.block_codes is None
            or torch.equal(left.block_codes, turn(right.block_codes))
        )
    )


def stochastic(scheme: Scheme) -> dict[str, int]:
    """A key for the schemes of training; exported weights are rounded to nearest."""
    return {} if scheme.scale in ("nvfp4_ptq", "four_over_six", "nvfp4_mse") else {"random": 77}


def test_bits():
    bits = {name: scheme.bits_per_element for name, scheme in SCHEMES.items()}
    assert (bits["nvfp4"], bits["mxfp8"], bits["mxfp4"], bits["fp8_tensor"], bits["fp8_row"]) == (4.5, 8.25, 4.25, 8, 8)
    assert (bits["fp8_1x128"], bits["nvfp4_2d"], bits["gam_128x128"]) == (8.25, 4 + 1 / 32, 8 + 2**-11)


@ALL
def test_incomplete_blocks_are_filled_up_with_zeros(scheme: Scheme):
    x = wide(37, 141)
    filled = torch.zeros(128, 256)
    filled[:37, :141] = x
    part, whole = quantize(x, scheme), quantize(filled, scheme)
    assert torch.equal(part.codes, whole.codes[:37, :141])
    assert torch.equal(part.dequantize(), whole.dequantize()[:37, :141])
    rows, columns = part.block_scale.shape
    assert torch.equal(part.block_scale, whole.block_scale[:rows, :columns])


@ALL
def test_axis_and_strides_only_turn_the_picture(scheme: Scheme):
    x = wide(40, 150).bfloat16()
    across, along = quantize(x, scheme, 0, **stochastic(scheme)), quantize(x.T, scheme, 1, **stochastic(scheme))
    assert same(across, along, transposed=True)
    assert torch.equal(across.dequantize(), along.dequantize().T)
    assert across.codes.is_contiguous()
    assert same(along, quantize(x.T.contiguous(), scheme, 1, **stochastic(scheme)))


@ALL
def test_values_lose_nothing(scheme: Scheme):
    found = quantize(wide(40, 150), scheme)
    values = found.values()
    assert values.dtype == (torch.bfloat16 if scheme.exact_in_bf16 else torch.float32)
    assert torch.equal(values.float() * found.global_scale, found.dequantize())
    stored = found.block_codes
    if stored is not None:
        decoded = e8m0_value(stored) if scheme.scale in ("e8m0_ceil", "e8m0_floor", "gam") else decode(stored, E4M3)
        assert torch.equal(decoded, found.block_scale)


@ALL
@pytest.mark.parametrize("x", [torch.zeros(3, 40), torch.full((3, 40), 1e-40), torch.zeros(0, 40), torch.zeros(3, 0)])
def test_zeros_denormals_and_nothing_at_all(scheme: Scheme, x: Tensor):
    y = quantize(x, scheme).dequantize()
    assert y.shape == x.shape
    assert (y.isfinite() & (y >= 0) & (y <= 1.5e-40)).all()


@ALL
def test_a_block_of_zeros_beside_others(scheme: Scheme):
    x = normal(256, 256)
    x[:128, :128] = 0
    y = quantize(x, scheme).dequantize()
    assert (y[:128, :128] == 0).all()
    assert torch.equal(y[128:], quantize(x[128:], scheme, amax=amax_of(x)).dequantize())


@ALL
def test_nan_stays_in_its_place(scheme: Scheme):
    x = normal(40, 150)
    x[5, 7] = 0
    clean = quantize(x, scheme)
    x[5, 7] = torch.nan
    dirty = quantize(x, scheme)
    assert torch.equal(clean.block_scale, dirty.block_scale)
    assert dirty.codes[5, 7] == (0x7 if scheme.element == "e2m1" else 0x7F)
    assert ((clean.codes != dirty.codes).nonzero() == torch.tensor([[5, 7]])).all()


def test_infinity_saturates_and_makes_the_scale_one():
    x = normal(40, 150)
    x[5, 7] = -torch.inf
    for scheme, code in ((FP8_TENSOR, 0xFE), (FP8_TENSOR_E5M2, 0xFB), (NVFP4, 0xF)):
        found = quantize(x, scheme)
        assert found.codes[5, 7] == code
        if scheme.element != "e2m1":
            assert found.global_scale == 1
    blocks = quantize(x, FP8_1X128)
    assert blocks.block_scale[5, 0] == 1
    assert blocks.block_scale[5, 1] != 1
    assert quantize(x, MXFP8).block_codes[5, 0] == 254  # type: ignore[index]


def test_fp8_is_the_scaled_cast_of_torch():
    x = wide(130, 300).bfloat16()
    for scheme, dtype, largest in (
        (FP8_TENSOR, torch.float8_e4m3fn, 448.0),
        (FP8_TENSOR_E5M2, torch.float8_e5m2, 57344.0),
    ):
        scale = torch.tensor(largest) / x.float().abs().max()
        found = quantize(x, scheme)
        cast = (x.float() * scale).clamp(-largest, largest).to(dtype)
        assert torch.equal(found.codes, cast.view(torch.uint8))
        assert torch.equal(found.values(), cast.bfloat16())
        assert found.global_scale == 1 / scale
    rows = torch.tensor(448.0) / x.float().abs().amax(1, keepdim=True)
    cast = (x.float() * rows).clamp(-448, 448).to(torch.float8_e4m3fn)
    assert torch.equal(quantize(x, FP8_ROW).codes, cast.view(torch.uint8))
    assert torch.equal(quantize(x, FP8_ROW).dequantize(), cast.float() * (1 / rows))
    block = quantize(x, FP8_1X128)
    power = 2.0 ** torch.floor(torch.log2(448 / x[:, 128:256].double().abs().amax(1, keepdim=True)))
    cast = (x[:, 128:256].float() * power.float()).to(torch.float8_e4m3fn)
    assert torch.equal(block.codes[:, 128:256], cast.view(torch.uint8))
    assert torch.equal(block.block_scale[:, 1:2], 1 / power.float())


@pytest.mark.parametrize("scheme", [NVFP4_2D, FP8_128X128_FP32, GAM_128X128, FP8_TENSOR])
def test_square_blocks_are_the_same_in_both_directions(scheme: Scheme):
    w = wide(144, 272)
    assert same(quantize(w, scheme, 1), quantize(w, scheme, 0))
    assert same(quantize(w, scheme), quantize(w.T, scheme), transposed=True)


def test_one_dimensional_weights_differ_between_the_passes():
    w = normal(1024, 256)
    forward, backward = quantize(w, NVFP4, 1).dequantize(), quantize(w, NVFP4, 0).dequantize()
    assert 0.10 < (forward - backward).norm() / w.norm() < 0.16


def test_order_within_the_contraction_axis():
    x = wide(8, 64)
    found = quantize(x, NVFP4)
    blocks = torch.tensor([2, 0, 3, 1])
    moved = quantize(x.unflatten(1, (4, 16))[:, blocks].flatten(1), NVFP4)
    assert torch.equal(moved.codes, found.codes.unflatten(1, (4, 16))[:, blocks].flatten(1))
    inside = torch.randperm(16, generator=torch.Generator().manual_seed(2))
    moved = quantize(x.unflatten(1, (4, 16))[..., inside].flatten(1), NVFP4)
    assert torch.equal(moved.block_scale, found.block_scale)
    assert torch.equal(moved.codes, found.codes.unflatten(1, (4, 16))[..., inside].flatten(1))


@pytest.mark.parametrize("bits", [8, 24])
def test_stochastic_rounding_depends_on_the_key_and_the_place_alone(bits: int):
    x = normal(24, 80)
    first = quantize(x, NVFP4, random=5, bits=bits)
    torch.manual_seed(3)
    other = quantize(x, NVFP4, random=6, bits=bits)
    assert same(first, quantize(x, NVFP4, random=5, bits=bits))
    assert 0.1 < (first.codes != other.codes).float().mean() < 0.9
    mean = torch.stack([quantize(x, NVFP4, random=key, bits=bits).dequantize() for key in range(64)]).mean(0)
    nearest = quantize(x, NVFP4).dequantize()
    assert (mean - x).norm() < (nearest - x).norm() / 3


def test_the_transform_comes_first():
    x = normal(40, 9).bfloat16()
    transformed = hadamard(x, 0, DEFAULT_SIGNS)
    assert same(quantize(x, NVFP4, 0, signs=DEFAULT_SIGNS, random=3), quantize(transformed, NVFP4, 0, random=3))


def test_gam_keeps_the_mantissa_of_the_tensor():
    x = wide(512, 512)
    found = quantize(x, GAM_128X128)
    scale = 1 / (found.block_scale * found.global_scale)
    largest = x.abs().unflatten(1, (4, 128)).unflatten(0, (4, 128)).amax((1, 3))
    plain = 448 / largest
    assert (scale <= plain * (1 + 2**-22)).all()
    assert (scale > plain / 2 * (1 - 2**-22)).all()
    top = largest == largest.max()
    torch.testing.assert_close(scale[top], plain[top], rtol=2**-22, atol=0)
    assert found.global_scale.log2().ceil() == 0  # 1 / mantissa lies in (1/2, 1]
    one = quantize(x, Scheme("e4m3", scale="gam"))
    assert torch.equal(one.codes, quantize(x, FP8_TENSOR).codes)


def test_searched_block_scales_lower_the_squared_error():
    w = normal(128, 256) * 0.02
    best = quantize(w, NVFP4_PTQ).dequantize()

    def error(scheme: Scheme) -> float:
        return float((quantize(w, scheme).dequantize() - w).square().sum() / (best - w).square().sum())

    assert error(NVFP4_MSE) < error(NVFP4_FOUR_OVER_SIX) < 0.9
    block, found = w[3, 16:32], quantize(w, NVFP4_MSE)
    candidates = decode(torch.arange(1, 127, dtype=torch.uint8), E4M3)
    errors = [(_nearest_fp4(block, each * found.global_scale) - block).square().sum() for each in candidates]
    assert found.block_scale[3, 1] == candidates[torch.stack(errors).argmin()]


def _nearest_fp4(x: Tensor, scale: Tensor) -> Tensor:
    """The nearest of the 15 values, by trying all."""
    grid = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6])
    grid = torch.cat((grid, -grid)) * scale
    return grid[(x[..., None] - grid).abs().argmin(-1)]


@pytest.mark.full
def test_relative_errors_are_those_of_the_table():
    x = normal(1024, 1024)
    for scheme, percent in (
        (FP8_TENSOR, 2.65),
        (Scheme("e4m3", 128, 1), 2.57),
        (FP8_TENSOR_E5M2, 5.27),
        (MXFP8, 2.65),
        (MXFP8_FLOOR, 2.94),
        (NVFP4, 9.50),
        (NVFP4_2D, 11.12),
        (MXFP4, 11.54),
        (MXFP4_FLOOR, 11.50),
    ):
        error = (quantize(x, scheme).dequantize() - x).norm() / x.norm()
        assert abs(100 * error - percent) < 0.02 * max(1.0, percent / 4), scheme
    error = (quantize(x, NVFP4, random=1).dequantize() - x).norm() / x.norm()
    assert abs(100 * error - 13.72) < 0.05


@pytest.mark.full
@pytest.mark.filterwarnings("ignore")  # torchao warns about its own parts
def test_torchao_agrees():
    mx = pytest.importorskip("torchao.prototype.mx_formats.mx_tensor")
    nvfp4 = pytest.importorskip("torchao.prototype.mx_formats.nvfp4_tensor")
    blocked = pytest.importorskip("torchao.prototype.mx_formats.utils").to_blocked
    x = wide(130, 256)
    ceil, floor = mx.ScaleCalculationMode.RCEIL, mx.ScaleCalculationMode.FLOOR
    fp8, fp4 = torch.float8_e4m3fn, torch.float4_e2m1fn_x2
    for scheme, dtype, mode in (
        *((MXFP8, fp8, ceil), (MXFP8_FLOOR, fp8, floor), (MXFP4, fp4, ceil), (MXFP4_FLOOR, fp4, floor)),
    ):
        scale, data = mx.to_mx(x, dtype, 32, mode)
        found = quantize(x, scheme)
        assert found.block_codes is not None
        assert torch.equal(found.block_codes, scale.view(torch.uint8)), scheme
        codes = pack(found.codes) if scheme.element == "e2m1" else found.codes
        assert torch.equal(codes, data.view(torch.uint8)), scheme
    # Its block scale is at least 2^-6 and it multiplies by a reciprocal of another rounding, so ties may differ.
    x = normal(130, 256)
    scale, data = nvfp4.nvfp4_quantize(x, 16, nvfp4.per_tensor_amax_to_scale(x.abs().max()))
    found = quantize(x, NVFP4_PTQ)
    assert found.block_codes is not None
    assert torch.equal(found.block_codes, scale.view(torch.uint8))
    assert (pack(found.codes) == data).float().mean() > 0.999
    assert torch.equal(swizzle(found.block_codes), blocked(found.block_codes))
