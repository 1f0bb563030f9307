"""Is this still the folder that a run, or a file of answers, began with? A cheap look that notices another model under
the same path.

The identity of a model folder is one digest per file: of small files all bytes, of tensor files the size, the beginning
(which holds every name, type and place) and blocks spread over the rest. Training or converting a model changes nearly
every number, so it is always noticed; a flipped bit may not be, and is the business of `manifest.py`.
"""

import hashlib
import json
from pathlib import Path

from seqloom.core.errors import CheckpointError

NAME = "base.json"
"""Where a checkpoint keeps the identity of the folder its run began with."""

_BEGINNING = 1 << 20
_BLOCKS, _BLOCK = 64, 1 << 12


def identity(folder: Path) -> dict[str, str]:
    """Digest by name of every file that decides what a model, or an adapter over its model, computes.

    Raises:
        CheckpointError: a file cannot be read.
    """
    configs = [name for name in ("config.json", "adapter_config.json") if (folder / name).exists()] or ["config.json"]
    names = [*configs, *(path.name for path in folder.glob("*.safetensors*"))]
    return {name: _digest(folder / name) for name in sorted(names)}


def write_identity(folder: Path, base: str, found: dict[str, str]) -> None:
    """Keep the identity of a base model in a checkpoint."""
    (folder / NAME).write_text(json.dumps({"base": base, "files": found}, indent=1) + "\n", encoding="utf-8")


def read_identity(folder: Path) -> dict[str, str] | None:
    """The identity kept in a checkpoint, None if there is none.

    Raises:
        CheckpointError: the file is damaged.
    """
    path = folder / NAME
    try:
        return {
            str(name): str(digest) for name, digest in json.loads(path.read_text(encoding="utf-8"))["files"].items()
        }
    except FileNotFoundError:
        return None
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise CheckpointError(f"{path}: damaged: {error}") from error


def differing(then: dict[str, str], now: dict[str, str]) -> list[str]:
    """What changed between two identities, one phrase per file."""
    told = {True: "changed", False: "missing"}
    lines = [f"{name} {told[name in now]}" for name, digest in then.items() if now.get(name) != digest]
    return lines + [f"{name} is new" for name in now.keys() - then.keys()]


def _digest(path: Path) -> str:
    try:
        with path.open("rb") as file:
            size = path.stat().st_size
            digest = hashlib.sha256(str(size).encode())
            digest.update(file.read(_BEGINNING))
            for block in range(_BLOCKS if size > _BEGINNING else 0):
                file.seek(_BEGINNING + (size - _BEGINNING) * block // _BLOCKS)
                digest.update(file.read(_BLOCK))
            return digest.hexdigest()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
