"""Memory figures against the operating system's own, and against control groups laid out in a folder."""

import sys
from pathlib import Path

import psutil
import pytest
import torch

from seqloom.core import devices
from seqloom.core.errors import ConfigError

CPU = torch.device("cpu")
GIB = 2**30


def test_auto_takes_what_is_there() -> None:
    assert devices.pick_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert devices.pick_device("cpu") == CPU


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is here")
def test_a_missing_device_is_refused() -> None:
    with pytest.raises(ConfigError, match="'cuda' is wanted, but torch sees no CUDA device"):
        devices.pick_device("cuda")


def test_available_memory_is_what_the_system_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "_cgroup_bytes", lambda root: [])
    expected = psutil.virtual_memory().available
    assert abs(devices.available_bytes(CPU) - expected) < GIB
    monkeypatch.setitem(sys.modules, "psutil", None)
    assert abs(devices.available_bytes(CPU) - expected) < GIB


def test_the_tightest_limit_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "_cgroup_bytes", lambda root: [5000, 4000])
    assert devices.available_bytes(CPU) == 4000


def test_used_memory_is_the_peak() -> None:
    before = devices.used_bytes(CPU)
    assert before >= psutil.Process().memory_info().rss * 0.9
    block = torch.ones(before // 4 + 50_000_000 // 4)
    assert devices.used_bytes(CPU) > before
    del block
    assert devices.used_bytes(CPU) > before


def _group(folder: Path, limit: str, used: int, version: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    names = ("memory.max", "memory.current") if version == 2 else ("memory.limit_in_bytes", "memory.usage_in_bytes")
    prefix = "" if version == 2 else "total_"
    (folder / names[0]).write_text(f"{limit}\n")
    (folder / names[1]).write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 5\n{prefix}active_file 20\n{prefix}inactive_file 30\n")


def _membership(root: Path, text: str) -> None:
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(text)


def test_every_level_of_the_unified_hierarchy_counts(tmp_path: Path) -> None:
    _membership(tmp_path, "0::/job/step\n")
    _group(tmp_path / "sys/fs/cgroup/job", "1000", 400, version=2)
    _group(tmp_path / "sys/fs/cgroup/job/step", "max", 300, version=2)
    assert devices._cgroup_bytes(tmp_path) == [1000 - 400 + 50]


def test_the_older_hierarchy_counts(tmp_path: Path) -> None:
    _membership(tmp_path, "4:cpu,memory:/job\n1:name=systemd:/x\n0::/\n")
    _group(tmp_path / "sys/fs/cgroup/memory", str(2**63 - 4096), 900, version=1)
    _group(tmp_path / "sys/fs/cgroup/memory/job", "1000", 400, version=1)
    assert devices._cgroup_bytes(tmp_path) == [1000 - 400 + 50, 2**63 - 4096 - 900 + 50]


def test_in_a_container_the_limit_stands_at_the_top(tmp_path: Path) -> None:
    _membership(tmp_path, "0::/docker/0123abc\n")
    _group(tmp_path / "sys/fs/cgroup", "1000", 1100, version=2)
    assert devices._cgroup_bytes(tmp_path) == [0]


def test_without_control_groups_there_is_no_limit(tmp_path: Path) -> None:
    assert devices._cgroup_bytes(tmp_path) == []


def test_an_allocator_holds_more_than_its_tensors() -> None:
    assert devices.held_bytes(1000, torch.device("cpu")) == 1300
    assert devices.held_bytes(1000, torch.device("cuda")) == 1100
