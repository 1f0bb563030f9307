"""Products with weights in few bits: every form against the formula, and no row sees another."""

import pytest
import torch
from torch import Tensor

from native_checks import guarded
from seqloom.numerics.quantized import quantize
from seqloom.numerics.scheme import FP8_TENSOR, NVFP4_PTQ
from seqloom.ops.kernels import invariant
from seqloom.ops.native.build import why_not
from seqloom.ops.packed_linear import pack, packed_linear, packed_linear_reference, packed_rows

FP32, BF16 = torch.float32, torch.bfloat16
KINDS = ["int8", "fp8", "nvfp4"]
SHAPES = [(1, 16), (5, 48), (53, 80), (101, 1616), (50, 2064)]  # rests of every step; long rows are cut
ROWS = [1, 2, 3, 4, 5, 8, 9, 20, 33, 131]  # all tiles, few and many


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(params=["torch", "native"])
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "native" and (reason := why_not()):
        pytest.skip(reason)
    monkeypatch.setenv("SEQLOOM_KERNELS", f"packed_linear={request.param}")
    return request.param


def assert_exact(y: Tensor, x: Tensor, weight: Tensor, whole: bool = False) -> None:
    """To the roundings of FP32 sums, which grow with the terms, to one of the result, and to those of inputs that 32
    together are made whole numbers."""
    exact, size = x.double() @ weight.double().T, x.double().abs() @ weight.double().abs().T
    error = (y.double() - exact).abs() - 1e-6 * size
    if whole:
        stretches = torch.nn.functional.pad(x.double().abs(), (0, -x.shape[1] % 32)).unflatten(1, (-1, 32))
        largest = stretches.amax(-1, keepdim=True).expand_as(stretches).flatten(1)[:, : x.shape[1]]
        kept = (x.dtype == BF16) & (x.double().abs() >= largest * 2**-7)
        error -= largest.masked_fill(kept, 0) * 2**-15 @ weight.double().abs().T
    assert (error <= (exact.abs() * 2**-8 if y.dtype == BF16 else 0)).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [FP32, BF16], ids=str)
def test_equals_the_product_of_what_is_stored(kind: str, dtype: torch.dtype, form: str) -> None:
    for outputs, inputs in SHAPES[: 3 if form == "torch" else None]:
        packed, x = pack(numbers(outputs, inputs), kind), numbers(ROWS[-1], inputs, seed=1).to(dtype)
        x[:3] *= torch.tensor([[1e30], [1e-30], [0]])
        y = packed_linear(x, packed)
        assert y.dtype == dtype
        assert_exact(y, x, packed.dequantize(), whole=form == "native" and kind != "fp8")
        assert_exact(packed_linear_reference(x, packed), x, packed.dequantize())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("wrong", [torch.inf, torch.nan])
def test_what_is_not_finite_stays_seen(kind: str, wrong: float, form: str) -> None:
    packed, x = pack(numbers(19, 80), kind), numbers(9, 80)
    clean = packed_linear(x, packed)
    x[3, 70] = wrong
    y = packed_linear(x, packed)
    assert not y[3].isfinite().any()
    assert torch.equal(y[4:], clean[4:])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [FP32, BF16], ids=str)
def test_no_row_sees_another(kind: str, dtype: torch.dtype, form: str) -> None:
    outputs, inputs = SHAPES[-1]
    packed, x = pack(numbers(outputs, inputs), kind), numbers(ROWS[-1], inputs, seed=1).to(dtype)
    with invariant():
        y = packed_linear(x, packed)
        for rows in ROWS[: None if form == "native" else 3]:
            assert torch.equal(packed_linear(x[-rows:], packed), y[-rows:])


@pytest.mark.parametrize("kind", ["int8", "fp8", "nvfp4"])
def test_every_code_and_scale(kind: str, form: str) -> None:
    """All codes, and all scales that a file may hold, subnormal ones too; one number of x at a time."""
    if kind == "nvfp4":
        codes = torch.arange(256, dtype=torch.uint8).repeat(252, 1)[:, :128]  # 256 codes
        codes = torch.cat((codes, codes + 128), 1)
        scales = torch.tensor([s for s in range(256) if s & 0x7F != 0x7F] * 32, dtype=torch.uint8)
        packed = packed_rows(kind, codes[:252], scales[: 252 * 32].view(252, 32), (0.37,))
    elif kind == "fp8":
        legal = torch.tensor([s for s in range(256) if s & 0x7F != 0x7F], dtype=torch.uint8)
        packed = packed_rows(kind, legal.repeat(2, 1), None, (1.5,))
    else:
        codes = torch.arange(-127, 128).to(torch.int8).repeat(40, 1)
        scales = (2.0 ** torch.linspace(-24, 5, 40 * 8)).half().view(40, 8)
        packed = packed_rows(kind, codes, scales, (1.0,))
    y = packed_linear(torch.eye(packed.inputs), packed)
    assert torch.equal(y.T, packed.dequantize())


def test_packing_is_that_of_checkpoints() -> None:
    weight = numbers(20, 64)
    for kind, scheme in (("fp8", FP8_TENSOR), ("nvfp4", NVFP4_PTQ)):
        assert torch.equal(pack(weight, kind).dequantize(), quantize(weight, scheme).dequantize())
    eight = pack(weight, "int8")
    scales = weight.view(20, 2, 32).abs().amax(-1) / 127
    assert ((eight.dequantize() - weight).view(20, 2, 32).abs() <= scales[..., None] * 0.6).all()
    assert eight.nbytes == 24 * (64 + 2 * 2)
    stack = numbers(3, 20, 64)
    for kind in KINDS:
        stacked = pack(stack, kind)
        assert stacked.shape == stack.shape
        for expert in range(3):
            assert torch.equal(stacked.dequantize()[expert], pack(stack[expert], kind).dequantize())
            assert torch.equal(stacked.matrix(expert).dequantize(), stacked.dequantize()[expert])
    assert not pack(torch.zeros(4, 32), "int8").dequantize().any()


@pytest.mark.parametrize("kind", KINDS)
def test_only_the_result_is_written(kind: str) -> None:
    packed = pack(numbers(37, 80), kind)
    for rows in (3, 70):
        x = numbers(rows, 80, seed=1)
        wanted = packed_linear(x, packed)
        with guarded():
            y = packed_linear(x, packed)
        assert torch.equal(y, wanted)


def test_gradients_pass_through() -> None:
    packed, x = pack(numbers(9, 32), "nvfp4"), numbers(4, 32, seed=1).requires_grad_()
    packed_linear(x, packed).sum().backward()
    torch.testing.assert_close(x.grad, packed.dequantize().sum(0).expand(4, 32))
