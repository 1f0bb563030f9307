"""A recogniser to study: the one that is named, or one that is trained in the study's folder and stays there."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

from seqloom.core.cache import key
from seqloom.core.config import Ge, MinLen, config, parse, read_yaml, to_data
from seqloom.core.errors import ConfigError
from seqloom.data.config import SourceConfig
from seqloom.systems.deep_speech2.config import LETTERS, Run
from seqloom.systems.deep_speech2.recipes import an4, tiny
from seqloom.train.observer import Observer
from seqloom.train.state import RUN


@config
class ModelOptions:
    """Which recogniser to study."""

    scale: Literal["laptop", "gpu"] = "laptop"
    """laptop: deep_speech2/tiny; gpu: deep_speech2/an4."""
    model: str | None = None
    """A run folder of deep_speech2, in place of a model trained for the study."""
    data: Annotated[tuple[str, ...], MinLen(1)] = (LETTERS,)
    """Speech to train on, where no model is named; two fifths of it are held back."""
    steps: Annotated[int, Ge(8)] | None = None
    """Length of that training."""


def trained(options: ModelOptions, folder: Path, watch: Observer) -> tuple[Path, Run]:
    """A run folder, and its run.

    Raises:
        ConfigError: the folder named is no run.
        Interrupted: a signal; the same command goes on.
    """
    if options.model is not None:
        place = Path(options.model).expanduser()
        if not (place / RUN).exists():
            raise ConfigError(f"--model: {place} has no {RUN}, so it is no run folder")
        return place, parse(Run, read_yaml(place / RUN), str(place / RUN))
    from seqloom.train.loop import train

    run = planned(options)
    place = folder / f"model-{key(to_data(run))[:8]}"
    train(run, place, watch)
    return place, run


def planned(options: ModelOptions) -> Run:
    """The training that a study begins with."""
    run = an4() if options.scale == "gpu" else tiny()
    sources = tuple(SourceConfig(path=path) for path in options.data)
    task = replace(run.task, data=replace(run.task.data, sources=sources, valid_fraction=0.4))
    steps = options.steps or run.train.steps
    schedule = replace(run.train.schedule, warmup_steps=max(1, min(run.train.schedule.warmup_steps, steps // 10)))
    train = replace(run.train, steps=steps, schedule=schedule, evaluate_every=steps, save_every=steps)
    return replace(run, task=task, train=train)
