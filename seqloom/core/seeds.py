"""Randomness by name: every stream of random numbers is a pure function of one seed and the place that draws from it.

No stream depends on how much another one drew, so data order, dropout or sampling never shift each other.
Torch's global generators, which layers and initialisation draw from, are seeded by the loop and saved with the run.
"""

import hashlib
import json

import torch
from torch import Tensor

from seqloom.core.errors import CheckpointError


def derive(seed: int, *path: str | int) -> int:
    """A 64-bit seed for one place, for instance `derive(seed, "order", epoch)`: BLAKE2b of seed and path."""
    text = json.dumps([seed, *path])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def generator(seed: int, *path: str | int) -> torch.Generator:
    """A CPU generator of its own for one place."""
    return torch.Generator().manual_seed(derive(seed, *path))


def capture_rng() -> dict[str, Tensor]:
    """The state of torch's global generators: "cpu", and "cuda.<index>" for each device."""
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states |= {f"cuda.{index}": state for index, state in enumerate(torch.cuda.get_rng_state_all())}
    return states


def restore_rng(states: dict[str, Tensor]) -> None:
    """Put torch's global generators back to a captured state; devices that are not here are passed over.

    Raises:
        CheckpointError: the states are not those of a generator.
    """
    try:
        torch.set_rng_state(states["cpu"])
        for index in range(torch.cuda.device_count()):
            if f"cuda.{index}" in states:
                torch.cuda.set_rng_state(states[f"cuda.{index}"], index)
    except (KeyError, RuntimeError, TypeError) as error:
        raise CheckpointError(f"not a saved state of random generators: {error}") from error
