"""Finds the system that owns a name, a recipe or a folder.

Systems live on a high floor, yet the engine and the command line must open any of them by name. This is the one
place where a name is turned into a room, by a fixed convention, so no lower floor ever imports a system:

    seqloom/systems/<name>/config.py    class `Run`, constant `MODEL_TYPE` (the `model_type` of its config.json)
    seqloom/systems/<name>/recipes.py   dictionary `RECIPES`: recipe name -> function returning a complete `Run`
    seqloom/systems/<name>/folder.py    function `read_model(folder) -> model`
"""

import importlib
import json
import pkgutil
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from seqloom.core.checkpoint.run_folder import RunFolder
from seqloom.core.errors import CheckpointError, ConfigError


def systems() -> list[str]:
    """Names of all systems, sorted."""
    package = importlib.import_module("seqloom.systems")
    return sorted(found.name for found in pkgutil.iter_modules(package.__path__) if found.ispkg)


def part(system: str, name: str) -> Any:
    """Import one module of a system's room, for instance `part("hybrid_lm", "config")`.

    Raises:
        ConfigError: there is no such system.
    """
    if system not in systems():
        raise ConfigError(f"unknown system '{system}'; known: {', '.join(systems())}")
    return importlib.import_module(f"seqloom.systems.{system}.{name}")


def recipes() -> dict[str, Any]:
    """Every recipe by its full name, `system/name`."""
    return {f"{system}/{name}": make for system in systems() for name, make in part(system, "recipes").RECIPES.items()}


def recipe(name: str) -> Any:
    """A complete, ready-to-train `Run` by its recipe name, such as `hybrid_lm/tiny`.

    Raises:
        ConfigError: no recipe has this name; the nearest ones are listed.
    """
    known = recipes()
    if name not in known:
        near = get_close_matches(name, known, n=3, cutoff=0.4) or sorted(known)
        raise ConfigError(f"unknown recipe '{name}'; did you mean: {', '.join(near)}?  (`seqloom list` shows all)")
    return known[name]()


def load(folder: str | Path) -> Any:
    """Load a model from a run folder (its newest whole checkpoint) or a public checkpoint folder, ready for inference.

    Returns:
        the model in evaluation mode; `model(tokens)` gives logits of shape B T V for language models.
    Raises:
        CheckpointError: the folder is missing, damaged, or of a kind no system here can read.
    """
    _, folder = RunFolder(folder).open_latest() or (None, Path(folder))
    return part(owner(folder), "folder").read_model(folder).eval()


def owner(folder: Path) -> str:
    """The system that can read a model folder, by the `model_type` of its config.json.

    Raises:
        CheckpointError: the folder is missing, damaged, or of a kind no system here can read.
    """
    kind = _model_type(folder)
    known = {part(system, "config").MODEL_TYPE: system for system in systems()}
    if kind not in known:
        raise CheckpointError(f"{folder}: model_type '{kind}' is not known here; known: {', '.join(sorted(known))}")
    return known[kind]


def _model_type(folder: Path) -> str:
    path = folder / "config.json"
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        return str(fields["model_type"])
    except FileNotFoundError:
        reason = "there is no config.json in it" if folder.is_dir() else "it does not exist"
        raise CheckpointError(f"{folder}: not a model or run folder; {reason}") from None
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise CheckpointError(f"{path}: not a JSON file: {error}") from error
    except (TypeError, KeyError):
        raise CheckpointError(f"{path}: not a model's configuration; it names no model_type") from None
