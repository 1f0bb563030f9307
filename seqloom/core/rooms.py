"""Finds the system that owns a name, a recipe or a folder.

Systems live on a high floor, yet the engine and the command line must open any of them by name. This is the one
place where a name is turned into a room, by a fixed convention, so no lower floor ever imports a system:

    seqloom/systems/<name>/config.py    class `Run`, constant `MODEL_TYPES` (each `model_type` of its folders)
    seqloom/systems/<name>/recipes.py   dictionary `RECIPES`: recipe name -> function returning a complete `Run`
    seqloom/systems/<name>/budget.py    functions `headline(config)` and `describe(config)`: what a model costs
    seqloom/systems/<name>/folder.py    function `read_model(folder, verified=...) -> model`
    seqloom/systems/<name>/packed_folder.py   where there is one, function `read_packed`: the same, computing from codes
    seqloom/systems/<name>/adapter.py   function `read_model(folder) -> model`, for adapters, which hold no model
    seqloom/systems/<name>/folder_facts.py    function `read_facts(folder)`: shapes of a model, and what lies there
"""

import importlib
import importlib.util
import os
import pkgutil
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from seqloom.core.checkpoint.json_file import read_config, read_json, shown
from seqloom.core.checkpoint.run_folder import RunFolder
from seqloom.core.errors import CheckpointError, ConfigError

MAIN_SYSTEM = "hybrid_lm"
"""The one whose recipes need no system before their name, though others have recipes of that name."""

ADAPTER = "adapter_config.json"
"""The file that makes a folder one of adapters, which are read together with the model they sit on."""


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


def full_name(name: str) -> str:
    """The full name, `system/name`, of a recipe given with or without its system.

    The system may be left out where only one system has a recipe of that name, or the main one has.

    Raises:
        ConfigError: no recipe has this name (the nearest are listed), or several have (all are listed).
    """
    found = _spellings().get(name, [])
    if len(found) == 1:
        return found[0]
    if found:
        raise ConfigError(f"'{name}' is the name of several recipes; write one of: {', '.join(found)}")
    near = nearest(name) or sorted(recipes())
    raise ConfigError(f"unknown recipe '{name}'; did you mean: {', '.join(near)}?  (`seqloom list` shows all)")


def is_recipe(name: str) -> bool:
    """Whether a name, with or without its system, is that of one or more recipes."""
    return name in _spellings()


def short_name(name: str) -> str:
    """A recipe's full name without its system, where that is enough to find it."""
    short = name.split("/")[1]
    return short if _spellings()[short] == [name] else name


def nearest(name: str) -> list[str]:
    """Full names of the recipes that a misspelt name may mean, the likeliest first; at most three."""
    spellings = _spellings()
    near = sorted((spelling for spelling in spellings if name.lower() in spelling), key=len)
    near += get_close_matches(name, spellings, n=6, cutoff=0.5)
    return list(dict.fromkeys(full for spelling in near for full in spellings[spelling]))[:3]


def _spellings() -> dict[str, list[str]]:
    """Every way to write a recipe's name, with and without its system -> the full names it may stand for."""
    found: dict[str, list[str]] = {}
    for full in recipes():
        for spelling in (full, full.split("/")[1]):
            found.setdefault(spelling, []).append(full)
    main = {full.split("/")[1]: [full] for full in recipes() if full.startswith(f"{MAIN_SYSTEM}/")}
    return found | main


def recipe(name: str) -> Any:
    """A complete, ready-to-train `Run` by its recipe name, such as `hybrid_lm/tiny` or just `tiny`.

    Raises:
        ConfigError: no recipe, or more than one, has this name.
    """
    return recipes()[full_name(name)]()


def load(folder: str | Path, *, packed: bool = False) -> Any:
    """Load a model from a run folder (its newest whole checkpoint) or a public checkpoint folder, ready for inference.

    An adapter is folded into the model that it names.

    Args:
        packed: multiply by quantized matrices as they are stored, where the system can; else they are dequantized.
    Returns:
        the model in evaluation mode; `model(tokens)` gives logits of shape B T V for language models.
    Raises:
        CheckpointError: the folder is missing, damaged, or of a kind no system here can read.
    """
    folder, verified = newest(folder)
    if is_adapter(folder):
        return part(owner(folder), "adapter").read_model(folder).eval()
    system = owner(folder)
    if packed and importlib.util.find_spec(f"seqloom.systems.{system}.packed_folder"):
        read = part(system, "packed_folder").read_packed
    else:
        read = part(system, "folder").read_model
    return read(folder, verified=verified).eval()


def newest(source: str | Path) -> tuple[Path, bool]:
    """The folder to read of a run, that of its newest whole step, and whether its digests were compared; any other
    folder is itself.

    Raises:
        CheckpointError: there are checkpoints and none is whole.
    """
    found = RunFolder(source).open_latest()
    return (found[1], True) if found else (Path(source), False)


def model_folder(source: Path) -> tuple[Path, bool]:
    """The folder of a model of its own, of a run that of its newest whole step, and whether its digests were compared.

    Raises:
        ConfigError: it holds adapters, which are no model yet.
        CheckpointError: there are checkpoints and none is whole.
    """
    folder, verified = newest(source)
    if is_adapter(folder):
        raise ConfigError(
            f"{source}: holds adapters; fold them into their model first: seqloom merge {source} --out ..."
        )
    return folder, verified


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds adapters and no model of its own."""
    return (folder / ADAPTER).exists() and not any(folder.glob("model*.safetensors*"))


def owner(folder: Path) -> str:
    """The system that can read a model folder, by the `model_type` of its config.json (or that of an adapter's model).

    Raises:
        CheckpointError: the folder is missing, damaged, or of a kind no system here can read.
    """
    kind = _model_type(folder)
    known = {kind: system for system in systems() for kind in part(system, "config").MODEL_TYPES}
    if kind not in known:
        raise CheckpointError(
            f"{folder}: model_type {shown(kind)} is not known here; known: {', '.join(sorted(known))}"
        )
    return known[kind]


def _model_type(folder: Path) -> str:
    path = folder / "config.json"
    if not folder.is_dir():
        reason = "it is a file" if folder.exists() else "it does not exist"
        raise CheckpointError(f"{folder}: not a model or run folder; {reason}")
    if not os.path.lexists(path) and is_adapter(folder):
        path = Path(str(read_json(folder / ADAPTER).get("base_model_name_or_path"))) / path.name
        if not path.exists():
            raise CheckpointError(f"{folder}: the model that the adapter sits on is not at {shown(str(path.parent))}")
    elif not os.path.lexists(path):
        raise CheckpointError(f"{folder}: not a model or run folder; there is no config.json in it")
    kind = read_config(path).get("model_type")
    if not isinstance(kind, str):
        raise CheckpointError(f"{path}: not a model's configuration; it names no model_type")
    return kind
