"""Routed experts in C++ against the reference in FP64, and what must not change a bit of them."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from seqloom.ops.adapted_experts import LowRank, adapted_reference
from seqloom.ops.experts import experts, experts_in_order, experts_reference, experts_sorted
from seqloom.ops.native.build import library, why_not

if library() is None:
    pytest.skip(f"no native kernels: {why_not()}", allow_module_level=True)

from seqloom.ops.native import experts as native
from seqloom.ops.native.experts_stored import experts_stored
from seqloom.ops.packed_linear import pack

FP32, BF16 = torch.float32, torch.bfloat16
SHAPES = [
    (1, 1, 1, 1, 1),
    (2, 4, 64, 16, 24),  # row by row, most experts idle
    (16, 3, 5, 33, 17),
    (17, 3, 5, 33, 17),
    (300, 8, 8, 7, 13),  # several blocks of every expert
    (3300, 1, 2, 9, 10),  # several runs of an expert
]


def inputs(S: int, K: int, E: int, width: int, F: int, dtype: torch.dtype = FP32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(5)
    x, up, down = (torch.randn(*shape, generator=generator) for shape in ((S, width), (E, F, width), (E, width, F)))
    weights, indices = torch.rand(S, E, generator=generator).topk(K, -1)
    return [x.to(dtype), indices, weights, (up / width**0.5).to(dtype), (down / F**0.5).to(dtype)]


def adapters(E: int, width: int, F: int, up_rank: int, down_rank: int, dtype: torch.dtype = FP32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    shapes = ((E, up_rank, width), (E, F, up_rank), (E, down_rank, F), (E, width, down_rank))
    return [torch.randn(*shape, generator=generator).to(dtype) for shape in shapes]


def found(form: Callable[..., Tensor], *given: Tensor, frozen: tuple[int, ...] = ()) -> list[Tensor]:
    """Output and the gradients of everything floating but what stands at the places `frozen`."""
    leaves = [
        value.detach().requires_grad_() if value.is_floating_point() and i not in frozen else value
        for i, value in enumerate(given)
    ]
    y = form(*leaves)
    dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(2)).to(y.dtype)
    return [y.detach(), *torch.autograd.grad(y, [leaf for leaf in leaves if leaf.requires_grad], dy)]


def adapted(form: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda x, indices, weights, up, down, a, b, c, d: form(
        x, indices, weights, up, down, LowRank(a, b), LowRank(c, d), 0.7
    )


def wide(given: list[Tensor]) -> list[Tensor]:
    return [value.double() if value.is_floating_point() else value for value in given]


def assert_near(mine: list[Tensor], truth: list[Tensor], tolerance: float) -> None:
    """No difference is larger than this share of the largest value."""
    for one, other in zip(mine, truth, strict=True):
        if one.numel():
            assert (one.double() - other).abs().max() <= tolerance * other.abs().max()


def assert_equal(one: list[Tensor], other: list[Tensor]) -> None:
    for mine, theirs in zip(one, other, strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("shape", SHAPES)
def test_values_and_gradients(shape):
    given = inputs(*shape)
    assert_near(found(native.experts_native, *given), found(experts_reference, *wide(given)), 2e-6)


@pytest.mark.parametrize("shape", SHAPES)
def test_bf16_is_no_further_from_the_truth_than_its_rounding(shape):
    given = inputs(*shape, dtype=BF16)
    mine = found(native.experts_native, *given)
    assert [value.dtype for value in mine] == [BF16, BF16, FP32, BF16, BF16]
    assert_near(mine, found(experts_reference, *wide(given)), 2**-6)


@pytest.mark.parametrize("shape", [(5, 2, 8, 33, 17), (40, 3, 8, 7, 13), (3300, 1, 2, 9, 10)])
@pytest.mark.parametrize("ranks", [(2, 3), (0, 4), (1, 0)])
@pytest.mark.parametrize(
    ("dtype", "stored", "tolerance"), [(FP32, FP32, 2e-6), (FP32, BF16, 2e-6), (BF16, BF16, 2**-6)]
)
def test_adapted_values_and_gradients(shape, ranks, dtype, stored, tolerance):
    given = inputs(*shape, dtype=dtype)
    given[3:] = [*(matrix.to(stored) for matrix in given[3:]), *adapters(*shape[2:], *ranks, dtype=dtype)]
    mine = found(adapted(native.adapted_native), *given, frozen=(3, 4))
    truth = found(adapted(adapted_reference), *wide(given), frozen=(3, 4))
    assert_near(mine, truth, tolerance)


def test_frozen_matrices_may_be_wider_than_what_is_computed_in():
    shape = (40, 3, 8, 7, 13)
    x, indices, weights, up, down = inputs(*shape)
    factors = adapters(*shape[2:], 2, 2, dtype=BF16)
    narrow = found(adapted(native.adapted_native), x.to(BF16), indices, weights, up.to(BF16), down.to(BF16), *factors)
    kept = found(adapted(native.adapted_native), x.to(BF16), indices, weights, up, down, *factors, frozen=(3, 4))
    assert_equal(kept, [*narrow[:3], *narrow[5:]])


@pytest.mark.parametrize("S", [3, 40])
@pytest.mark.parametrize("dtype", [FP32, BF16])
@pytest.mark.parametrize("zero", ["b", "rank"])
def test_an_adapter_that_does_nothing_changes_no_bit(S, dtype, zero):
    shape = (S, 3, 8, 17, 13)
    given = inputs(*shape, dtype=dtype)
    factors = adapters(*shape[2:], *((0, 0) if zero == "rank" else (2, 3)), dtype=dtype)
    factors[1].zero_(), factors[3].zero_()
    plain = found(native.experts_native, *given)
    assert_equal(found(adapted(native.adapted_native), *given, *factors)[: len(plain)], plain)


@pytest.mark.parametrize("dtype", [FP32, BF16])
@pytest.mark.parametrize("S", [4, 700])
def test_learning_changes_no_bit_of_the_outputs(S, dtype):
    given = inputs(S, 3, 5, 33, 17, dtype=dtype)
    assert torch.equal(found(native.experts_native, *given)[0], native.experts_native(*given))


@pytest.mark.parametrize("dtype", [FP32, BF16])
@pytest.mark.parametrize("S", [4, 700])
def test_a_token_does_not_depend_on_its_neighbours(S, dtype):
    x, indices, weights, up, down = inputs(S, 3, 5, 33, 17, dtype=dtype)
    whole = native.experts_native(x, indices, weights, up, down)
    part = slice(S // 3, S // 3 + max(1, S // 5))
    assert torch.equal(native.experts_native(x[part], indices[part], weights[part], up, down), whole[part])


@pytest.mark.parametrize("dtype", [FP32, BF16])
@pytest.mark.parametrize("shape", [(8, 4, 16, 128, 96), (900, 3, 7, 33, 17), (3300, 1, 2, 9, 10)])
def test_neither_threads_nor_chance_change_a_bit(monkeypatch, shape, dtype):
    given = inputs(*shape, dtype=dtype)
    given += adapters(*shape[2:], 2, 3, dtype=dtype)
    runs = []
    for count in (1, 2, 3, 3):
        monkeypatch.setattr(native, "threads", lambda count=count: count)
        runs.append(found(adapted(native.adapted_native), *given))
    for other in runs[1:]:
        assert_equal(other, runs[0])


def test_memory_may_lie_in_any_order():
    given = inputs(37, 3, 8, 6, 5)
    x, indices, weights, up, down = given
    spread = [x.repeat(1, 2)[:, :6], indices.mT.contiguous().mT, weights.mT.contiguous().mT, up.mT.contiguous().mT,
              down.mT.contiguous().mT]  # fmt: skip
    assert not any(value.is_contiguous() for value in spread)
    assert_equal(found(native.experts_native, *spread), found(native.experts_native, *given))
    x = x.requires_grad_()
    (one,) = torch.autograd.grad(native.experts_native(x, *given[1:]).sum(), x)  # a gradient of one number, spread
    (other,) = torch.autograd.grad(native.experts_native(x, *given[1:]), x, torch.ones(37, 6))
    assert torch.equal(one, other)


def test_no_tokens_give_zero_gradients():
    y, dx, dweights, dup, ddown = found(native.experts_native, *inputs(0, 3, 8, 6, 5))
    assert (y.shape, dx.shape, dweights.shape) == ((0, 6), (0, 6), (0, 3))
    assert (dup == 0).all()
    assert (ddown == 0).all()


def test_only_wanted_gradients_are_made():
    given = inputs(40, 3, 8, 7, 13)
    names = ["y", "x", "weights", "up", "down"]
    whole = dict(zip(names, found(native.experts_native, *given), strict=True))
    for left in ((0,), (2,), (3,), (4,), (0, 3), (2, 3, 4), (0, 2, 4)):
        kept = [name for i, name in zip((-1, 0, 2, 3, 4), names, strict=True) if i not in left]
        assert_equal(found(native.experts_native, *given, frozen=left), [whole[name] for name in kept])


class Guarded:
    """Gives memory full of NaN, with more of it around, and tells whether that stayed."""

    MARGIN = 64

    def __init__(self) -> None:
        self.given: list[tuple[Tensor, int]] = []

    def new_empty(self, like: Tensor, *shape: int | torch.Size, dtype: torch.dtype | None = None) -> Tensor:
        size = torch.Size(shape) if not shape or isinstance(shape[0], int) else shape[0]
        count, dtype = size.numel(), dtype or like.dtype
        poison = float("nan") if dtype.is_floating_point else -77
        whole = torch.full((count + 2 * self.MARGIN,), poison, dtype=dtype)
        self.given.append((whole, count))
        return whole[self.MARGIN : self.MARGIN + count].view(size)

    def check(self) -> None:
        for whole, count in self.given:
            for guard in (whole[: self.MARGIN], whole[self.MARGIN + count :]):
                assert (guard.isnan() if whole.is_floating_point() else guard == -77).all()


@pytest.mark.parametrize("dtype", [FP32, BF16])
@pytest.mark.parametrize("shape", [shape for shape in SHAPES if shape[0] < 1000] + [(1700, 2, 3, 9, 5)])
def test_poisoned_memory_is_written_before_it_is_read_and_never_outside(monkeypatch, shape, dtype):
    given = inputs(*shape, dtype=dtype)
    given += adapters(*shape[2:], 2, 3, dtype=dtype)
    clean = found(adapted(native.adapted_native), *given)
    broken = [torch.full_like(value, float("nan")) if value.is_floating_point() else value for value in given]
    assert all(value.isnan().any() for value in found(adapted(native.adapted_native), *broken))  # and so the scratch
    guarded = Guarded()
    monkeypatch.setattr(Tensor, "new_empty", lambda like, *shape, **dtype: guarded.new_empty(like, *shape, **dtype))
    poisoned = found(adapted(native.adapted_native), *given)
    assert len(guarded.given) > 10
    guarded.check()
    assert_equal(poisoned, clean)


@pytest.mark.parametrize("S", [2, 40])
def test_what_is_not_finite_stays_seen(S):
    x, indices, weights, up, down = inputs(S, 2, 4, 9, 5)
    x[1, 3] = float("nan")
    y = native.experts_native(x, indices, weights, up, down)
    assert y[1].isnan().all()
    assert y[0].isfinite().all()


@pytest.mark.parametrize("wrong", [-1, 8])
def test_a_choice_of_no_expert_is_refused(wrong):
    x, indices, weights, up, down = inputs(37, 3, 8, 6, 5)
    indices[20, 1] = wrong
    with pytest.raises(AssertionError, match="none of the 8"):
        native.experts_native(x, indices, weights, up, down)


def test_nothing_is_kept_where_nobody_goes_back():
    given = inputs(40, 3, 8, 7, 13)
    given[3].requires_grad_()
    kept: list[int] = []
    hooks = torch.autograd.graph.saved_tensors_hooks(
        lambda value: kept.append(value.numel()) or value, lambda value: value
    )
    with hooks, torch.no_grad():
        native.experts_native(*given)
    assert kept == []
    with hooks:
        native.experts_native(*given)
    inside = sum(value.numel() for value in given)
    assert sum(kept) == inside + 40 * 3 * 13  # and what the activation got


def test_it_is_what_runs(monkeypatch):
    monkeypatch.delenv("SEQLOOM_KERNELS", raising=False)
    given = inputs(40, 3, 8, 7, 13)
    assert torch.equal(experts(*given), native.experts_native(*given))
    assert not torch.equal(experts(*given), experts_sorted(*given))
    monkeypatch.setenv("SEQLOOM_KERNELS", "torch")
    assert torch.equal(experts(*given), experts_sorted(*given))


@pytest.mark.parametrize("dtype", [FP32, BF16], ids=str)
@pytest.mark.parametrize("stored", [FP32, BF16], ids=str)
def test_as_stored_is_row_by_row_for_any_number(dtype, stored, poisoned_scratch):
    x, indices, weights, up, down = inputs(700, 2, 3, 33, 47)
    x, up, down = x.to(dtype), up.to(stored), down.to(stored)
    y = experts_stored(x, indices, weights, up, down)
    if dtype == FP32 or stored == BF16:  # then the other form reads the same numbers, and of so few tokens row by row
        assert torch.equal(native.experts_native(x[:16], indices[:16], weights[:16], up, down), y[:16])
    for first, last in ((0, 1), (5, 70), (300, 700)):
        part = slice(first, last)
        assert torch.equal(experts_stored(x[part], indices[part], weights[part], up, down), y[part])
    tolerance = 2e-6 if dtype == FP32 else 2e-2
    up, down = up.to(dtype), down.to(dtype)
    assert_near([y], [experts_reference(*wide([x, indices, weights, up, down]))], tolerance)


@pytest.mark.parametrize("kind", ["int8", "fp8", "nvfp4"])
def test_packed_stacks(kind, poisoned_scratch):
    x, indices, weights, up, down = inputs(300, 2, 3, 32, 48)
    up, down = pack(up, kind), pack(down, kind)
    y = experts(x, indices, weights, up, down)
    truth = experts_reference(*wide([x, indices, weights, up.dequantize(), down.dequantize()]))
    assert_near([y], [truth], 2e-6 if kind == "fp8" else 1e-4)  # inputs of the others have 16 bits
    assert torch.equal(experts(x[7:9], indices[7:9], weights[7:9], up, down), y[7:9])
    assert_near([experts_in_order(x, indices, weights, up, down)], [truth], 2e-6)
