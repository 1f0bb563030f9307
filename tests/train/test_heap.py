"""Memory of one step is there for the next, and given back after the last."""

import ctypes
import resource
import subprocess
import sys
from pathlib import Path

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


SCRIPT = """
import re
from seqloom.train.heap import kept_heap
with kept_heap():
    regions = re.split(r"^(?=[0-9a-f]+-[0-9a-f]+ )", open("/proc/self/smaps").read(), flags=re.MULTILINE)
large = [region for region in regions if "[heap]" in region and re.search(r"^VmFlags:.* hg", region, re.MULTILINE)]
print(sum(int(re.search(r"^Size: +(\\d+) kB", region, re.MULTILINE)[1]) for region in large) >> 10)
"""


def _large_pages() -> bool:
    setting = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    return hasattr(ctypes.CDLL(None), "mallopt") and setting.exists()


@pytest.mark.skipif(not _large_pages(), reason="no large pages on demand")
def test_the_heap_goes_on_in_large_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in heap._CHOSEN_BY_HAND:
        monkeypatch.delenv(name, raising=False)
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    assert int(done.stdout) >= 1000  # MB
