"""What makes several processes act as one: where they meet, what only one of them writes, when they stop.

All ranks walk through the same loop. The main rank locks and writes the run folder, logs and shows; the others hold
stand-ins that do nothing. What one rank finds out and all must act on is told or agreed.
"""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import TypeVar

import torch

from seqloom.core.checkpoint.run_folder import RunFolder
from seqloom.core.distributed import Ranks, here, joined, local, placed, world
from seqloom.core.logs import MetricsLog
from seqloom.train.interrupt import StopRequest
from seqloom.train.observer import Observer
from seqloom.train.run import Run
from seqloom.train.trackers import Records

T = TypeVar("T")


@contextlib.contextmanager
def together(run: Run, device: torch.device) -> Iterator[Ranks]:
    """Meet the other processes of this training and take a place among them; alone, do nothing.

    Raises:
        ConfigError: the settings do not fit the number of processes, or the model cannot be divided so.
    """
    rank, size = world()
    if size == 1 and run.train.parallel.single:
        yield Ranks()
        return
    from seqloom.train.parallel.mesh import arrange, resolve_parallel

    parallel = resolve_parallel(run.train.parallel, size)
    run.refuse_indivisible(parallel)
    if device.type == "cuda":
        torch.cuda.set_device(local()[0])
    with joined(device.type), placed(arrange(parallel, rank, size, device)) as ranks:
        yield ranks


class CommonFolder(RunFolder):
    """The run folder of several ranks, on a disk that all of them see; the main rank alone writes."""

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        with super().lock() if here().main else contextlib.nullcontext():
            yield

    def save(self, step: int, write: Callable[[Path], object], keep: int) -> None:
        """As alone; no rank goes on before the step is saved, since one that then ended would end the writer too."""
        with here().main_first():
            if here().main:
                super().save(step, write, keep)

    def open_latest(self, report: Callable[[str], None] = lambda text: None) -> tuple[int, Path] | None:
        return here().told(super().open_latest(report) if here().main else None)

    def write_top(self, name: str, text: str) -> None:
        if here().main:
            super().write_top(name, text)


class Silence(Observer):
    """Says nothing, not even messages: the main rank has said it."""

    def on_message(self, text: str) -> None:
        pass


class NoRecords(Records):
    """Writes nothing down, and knows what the main rank has."""

    def __init__(self, log: MetricsLog) -> None:
        super().__init__(log, {}, lambda text: None)

    def add(self, kind: str, metrics: object) -> None:
        pass

    def note(self, kind: str, step: int, texts: object) -> None:
        pass

    def cut(self, step: int) -> None:
        pass


class AgreedStop(StopRequest):
    """A wish to stop that is granted by all ranks after the same step, whoever of them heard it.

    Nothing is given up on the way, since the others would wait for it. Before the first step signals act as they always
    do. Afterwards each is noted however often it comes: launchers and batch systems both send them, and the launcher
    has a last means of its own.
    """

    def __init__(self) -> None:
        super().__init__()
        self._heard = 0

    def __enter__(self) -> "AgreedStop":
        return self

    def attempt(self, work: Callable[[], T]) -> T | None:
        return work()

    def agree(self) -> None:
        if not self._before:
            super().__enter__()
        self.signal = self.signal or int(here().most(self._heard)) or None

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._heard = number
