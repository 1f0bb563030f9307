"""One kind of argument for everything that can be trained: a recipe name, a run.yaml, or a run folder.

Every setting of the run it names can be overridden by its dotted path (`--train.steps 200`); the command line for that
is made from the run's own classes.
"""

import dataclasses
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from seqloom.core import rooms
from seqloom.core.config import parse, read_yaml
from seqloom.core.errors import ConfigError
from seqloom.data.config import SourceConfig

RUN_FILE = "run.yaml"


def find_run(what: str) -> tuple[Any, Path | None]:
    """The run that an argument names, and its folder when it is a run folder.

    Raises:
        ConfigError: it is neither a recipe nor a file nor a run folder, or the file is not a valid run.
    """
    if rooms.is_recipe(what):
        return rooms.recipe(what), None
    path = Path(what)
    if path.is_dir():
        if not (path / RUN_FILE).exists():
            raise ConfigError(f"{path}: not a run folder (it has no {RUN_FILE})")
        return read_run(path / RUN_FILE), path
    if path.is_file():
        return read_run(path), None
    near = rooms.nearest(what)
    hint = f"did you mean '{rooms.short_name(near[0])}'? " if near else ""
    names = ", ".join(map(rooms.short_name, rooms.recipes()))
    raise ConfigError(f"'{what}' is neither a recipe nor a file nor a folder here; {hint}recipes: {names}")


def read_run(path: Path) -> Any:
    """The run stored in a file, checked against the classes of the system it names."""
    data = read_yaml(path)
    if not isinstance(data.get("system"), str):
        raise ConfigError(f"{path}: system: this setting is required; known: {', '.join(rooms.systems())}")
    return parse(rooms.part(data["system"], "config").Run, data, str(path))


def read_sources(groups: Sequence[Sequence[str]]) -> tuple[SourceConfig, ...]:
    """Corpora from the arguments of every `--data`: `PATH_OR_NAME` or `PATH_OR_NAME=WEIGHT`.

    A name that exists as written keeps its `=`.

    Raises:
        ConfigError: a weight is not a number.
    """
    sources = []
    for argument in chain.from_iterable(groups):
        path, cut, weight = argument.rpartition("=")
        if not cut or Path(argument).exists():
            path, weight = argument, "1"
        try:
            sources.append(SourceConfig(path=path, weight=float(weight)))
        except ValueError:
            example = f"write PATH=WEIGHT, for instance {path}=0.5"
            raise ConfigError(f"--data {argument}: '{weight}' is not a weight; {example}") from None
    return tuple(sources)


def with_sources(run: Any, sources: tuple[SourceConfig, ...]) -> Any:
    """The same run on other corpora.

    Raises:
        ConfigError: its system learns from no corpora.
    """
    if not hasattr(run.task, "data"):
        settings = f"seqloom train {run.system}/{run.name} --help"
        raise ConfigError(
            f"--data: '{run.name}' learns from no corpora; what it learns from is set under task ({settings})"
        )
    data = dataclasses.replace(run.task.data, sources=sources)
    return dataclasses.replace(run, task=dataclasses.replace(run.task, data=data))
