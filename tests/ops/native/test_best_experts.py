import pytest
import torch

from seqloom.ops.best_experts import best_experts, best_reference
from seqloom.ops.native.build import library, why_not

if library() is None:
    pytest.skip(f"no native kernels: {why_not()}", allow_module_level=True)

from seqloom.ops.native import best_experts as native

INF, NAN = float("inf"), float("nan")


@pytest.mark.parametrize("experts", [1, 3, 4, 8, 15, 16, 17, 64, 131])
@pytest.mark.parametrize("levels", [2, 1000])
def test_equals_the_reference_with_ties(experts, levels):
    generator = torch.Generator().manual_seed(0)
    rows, bias = (
        torch.randint(-levels, levels, shape, generator=generator) / 8 for shape in ((150, experts), (experts,))
    )
    for count in {1, (experts + 1) // 2, experts}:
        assert torch.equal(native.best_native(rows, bias, count), best_reference(rows, bias, count))
        assert torch.equal(native.best_native(rows, None, count), best_reference(rows, None, count))


def test_numbers_of_every_kind_have_their_place():
    row = torch.tensor([[-INF, 0.0, NAN, -0.0, INF, 1e-45, -3e38, -NAN, -1e-45]])
    assert native.best_native(row, None, 9).tolist() == [[2, 7, 4, 5, 1, 3, 8, 6, 0]]
    alike = torch.full((3, 11), -INF)
    assert native.best_native(alike, None, 4).tolist() == [[0, 1, 2, 3]] * 3  # still different ones


def test_memory_may_lie_in_any_order_and_threads_change_nothing(monkeypatch):
    rows = torch.rand(8, 300, generator=torch.Generator().manual_seed(0)).mT
    expected = best_reference(rows, None, 3)
    for count in (1, 2):
        monkeypatch.setattr(native, "threads", lambda count=count: count)
        assert torch.equal(native.best_native(rows, None, 3), expected)


def test_it_is_what_runs(monkeypatch):
    monkeypatch.delenv("SEQLOOM_KERNELS", raising=False)
    seen = []
    form = native.best_native
    monkeypatch.setattr(native, "best_native", lambda *given: seen.append(given) or form(*given))
    best_experts(torch.rand(2, 8), None, 2)
    assert len(seen) == 1
    best_experts(torch.rand(2, 8).double(), None, 2)
    monkeypatch.setenv("SEQLOOM_KERNELS", "torch")
    best_experts(torch.rand(2, 8), None, 2)
    assert len(seen) == 1
