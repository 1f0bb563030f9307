"""Where a number was measured: machine, versions, commit."""

import os
import platform
import subprocess
from pathlib import Path

import torch


def place(device: torch.device) -> dict[str, object]:
    """Facts to store beside every measurement."""
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False)
    return {
        "machine": torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "commit": commit.stdout.strip() or "none",
    }


def _cpu() -> str:
    """The processor's name and what it has for matrix products."""
    info = Path("/proc/cpuinfo")
    lines = dict(line.split(":", 1) for line in info.read_text().splitlines() if ":" in line) if info.exists() else {}
    fields = {key.strip(): value.strip() for key, value in lines.items()}
    flags = set(fields.get("flags", "").split()) & {"avx2", "avx512f", "avx512_bf16", "amx_bf16"}
    return " ".join([fields.get("model name", platform.machine()), *sorted(flags)])
