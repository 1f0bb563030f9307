"""Which device computes, how much memory it has left, and how much we took."""

import resource
import sys
from pathlib import Path
from typing import Literal

import torch

from seqloom.core.errors import ConfigError


def pick_device(wanted: Literal["auto", "cpu", "cuda"]) -> torch.device:
    """The device to compute on; "auto" takes a CUDA device where there is one.

    Raises:
        ConfigError: "cuda" is wanted and torch sees no such device.
    """
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    if wanted == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device: 'cuda' is wanted, but torch sees no CUDA device here; use 'cpu' or 'auto'")
    return torch.device(wanted)


def available_bytes(device: torch.device) -> int:
    """Memory that can still be taken on a device, in bytes; on the CPU never more than the control group allows."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return min([_system_bytes(), *_cgroup_bytes(Path("/"))])


def held_bytes(tensors: int, device: torch.device) -> int:
    """What a process takes of a device for so many bytes in tensors.

    The C library's allocator keeps what was freed in places that later tensors do not fit into: on trainings of 150 MB
    to 1.5 GB between 1.2 and 1.5 times the tensors' peak were resident on Linux. CUDA's caching allocator rounds up.
    """
    return int(tensors * (1.1 if device.type == "cuda" else 1.3))


def used_bytes(device: torch.device) -> int:
    """The most memory this process has held on a device so far, in bytes (on the CPU: peak resident size)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if status.exists():  # preferred, as getrusage counts what the parent held before the fork
        return _kilobytes(status, "VmHWM")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _system_bytes() -> int:
    try:
        import psutil
    except ImportError:
        return _kilobytes(Path("/proc/meminfo"), "MemAvailable")
    return int(psutil.virtual_memory().available)


def _kilobytes(table: Path, name: str) -> int:
    """A line such as `MemAvailable:  123 kB` of a file under /proc, in bytes."""
    for line in table.read_text(encoding="utf-8").splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise LookupError(f"{table} has no line {name}")


def _cgroup_bytes(root: Path) -> list[int]:
    """What each control group around this process has left; files in the page cache count as free."""
    membership = root / "proc/self/cgroup"
    left = []
    for line in membership.read_text(encoding="utf-8").splitlines() if membership.exists() else []:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            top, limit, usage, cached = root / "sys/fs/cgroup", "memory.max", "memory.current", "{}_file"
        elif "memory" in controllers.split(","):
            top, limit, usage = root / "sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes"
            cached = "total_{}_file"
        else:
            continue
        own = top / path.lstrip("/")
        for group in (own, *own.parents):
            if not group.is_relative_to(top):
                break
            try:  # in a container the path may be the host's, and a level may not count memory
                most = (group / limit).read_text(encoding="utf-8").strip()
                taken = int((group / usage).read_text(encoding="utf-8"))
                facts = dict(line.split() for line in (group / "memory.stat").read_text(encoding="utf-8").splitlines())
            except OSError:
                continue
            if most != "max":
                reclaimable = sum(int(facts[cached.format(kind)]) for kind in ("active", "inactive"))
                left.append(max(0, int(most) - taken + reclaimable))
    return left
