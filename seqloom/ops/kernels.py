"""Which implementation of an op runs: one rule, in sight, that a person can override.

Every op has a `reference` that reads like its formula and a `torch` form, fast and portable, that must match it in
values and gradients. `SEQLOOM_KERNELS="ssd=reference,experts=reference"` picks by hand; `seqloom show` prints what
runs.
"""

import os
from functools import lru_cache

import torch

from seqloom.core.errors import ConfigError

VARIABLE = "SEQLOOM_KERNELS"

IMPLEMENTATIONS: dict[str, tuple[str, ...]] = {
    "ssd": ("torch", "reference"),
    "causal_conv": ("torch", "reference"),
    "attention": ("torch", "reference", "flex"),
    "experts": ("torch", "reference"),
}
"""The implementations of every op, the preferred one first."""


def chosen(op: str, device: torch.device, dtype: torch.dtype) -> str:
    """The implementation of an op for tensors of this device and dtype: the override if there is one, else the
    preferred implementation that serves them. The portable forms serve every device and dtype.

    Raises:
        ConfigError: the override names an unknown op or implementation.
    """
    return _overrides(os.environ.get(VARIABLE, "")).get(op) or IMPLEMENTATIONS[op][0]


def table(device: torch.device, dtype: torch.dtype) -> dict[str, str]:
    """Op -> implementation that runs for tensors of this device and dtype.

    Raises:
        ConfigError: the override names an unknown op or implementation.
    """
    return {op: chosen(op, device, dtype) for op in IMPLEMENTATIONS}


@lru_cache
def _overrides(text: str) -> dict[str, str]:
    choices: dict[str, str] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        op, _, name = (side.strip() for side in part.partition("="))
        if op not in IMPLEMENTATIONS:
            raise ConfigError(f"{VARIABLE}: '{part}' names no known op; known: {', '.join(IMPLEMENTATIONS)}")
        if name not in IMPLEMENTATIONS[op]:
            raise ConfigError(f"{VARIABLE}: '{part}': implementations of {op}: {', '.join(IMPLEMENTATIONS[op])}")
        choices[op] = name
    return choices
