"""Measurements of a study that are kept: made once for their settings, and read from a file the next time."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from seqloom.core.checkpoint import commit
from seqloom.core.errors import CheckpointError


def measured(path: Path, settings: dict[str, Any], measure: Callable[[], Any]) -> tuple[Any, str]:
    """Plain data, and the machine that it was measured on.

    Args:
        path: the JSON file to keep it in; what it holds of other settings is measured anew.
        settings: plain data that decides what comes out, the machine aside.
    Raises:
        CheckpointError: the file cannot be written.
    """
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        if stored["settings"] == json.loads(json.dumps(settings)):
            return stored["found"], str(stored["machine"])
    except (OSError, ValueError, TypeError, KeyError):
        pass  # not measured yet, or damaged
    import torch

    from seqloom.core.devices import pick_device
    from seqloom.core.machine import machine_facts

    found = json.loads(json.dumps(measure()))
    machine = f"{machine_facts(pick_device('auto'))['machine']}, {torch.get_num_threads()} threads"
    text = json.dumps({"settings": settings, "machine": machine, "found": found}, indent=1)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        commit.write_file(path, (text + "\n").encode())
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be written: {error.strerror}") from error
    return found, machine
