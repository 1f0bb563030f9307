"""Memory of one step is there for the next, and given back after the last."""

import ctypes
import resource

import pytest
import torch

from seqloom.train import heap


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="the C library has no mallopt")
def test_pages_are_kept_inside_and_returned_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in heap._CHOSEN_BY_HAND:
        monkeypatch.delenv(name, raising=False)

    def faults_of_a_step() -> int:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        parts = [torch.ones(16 << 18) for _ in range(6)]  # 16 MB each; together more than glibc keeps by itself
        del parts
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    with heap.kept_heap():
        faults_of_a_step()
        kept = min(faults_of_a_step() for _ in range(3))
    assert faults_of_a_step() > 10 + 10 * kept
