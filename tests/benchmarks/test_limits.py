from argparse import Namespace

import pytest
import torch

from benchmarks import limits
from seqloom.ops.native.compiler import BuildError, find_compiler


def test_memory_and_products_are_measured_with_one_thread_and_all() -> None:
    options = Namespace(threads=2)
    figures = limits.memory(options)["figures"] | limits.products(options)["figures"]
    assert {name.rpartition("_per_s_")[2] for name in figures} == {"1_thread", "2_threads"}
    assert all(value > 0 for value in figures.values())
    assert torch.get_num_threads() == 1  # as before


def test_a_core_multiplies_and_calls_cost_something(monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        find_compiler()
    except BuildError as error:
        pytest.skip(str(error))
    monkeypatch.setattr(limits, "ROUNDS", 1000)
    monkeypatch.setattr(limits, "CALLS", 10)
    assert limits.fused(Namespace())["figures"]["fma_GFLOP_per_s_1_thread"] > 0
    figures = limits.calls(Namespace())["figures"]
    assert len(figures) == 4
    assert all(value > 0 for value in figures.values())
