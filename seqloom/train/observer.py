"""How a run can be watched: at most one observer, told what happened and asked for nothing."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from seqloom.numerics.precision import Format
from seqloom.train.run import Run


@dataclass(frozen=True)
class StartReport:
    """What is known before the first step.

    Attributes:
        run: the settings as they will be trained, nothing left on "auto" that changes a number.
        device: where it computes.
        parameters: how many numbers are trained.
        first_step: steps already done by earlier sessions; 0 for a new run.
        unit: what the loss counts, in the plural.
        shown: metrics to show beside the loss, and the words to follow their numbers.
        summary: what the task says of its data, as lines of text.
        formats: module name -> number format it computes in.
        needed_bytes: estimated peak memory.
        available_bytes: memory found free.
        adapter: what adapters train in place of the model's own weights, and which kinds of layers they reach; empty
            if the model itself is trained.
        precision: how many linear layers multiply in which format of few bits; empty if none does.
    """

    run: Run
    device: str
    parameters: int
    first_step: int
    unit: str
    shown: Mapping[str, str]
    summary: list[str]
    formats: dict[str, Format]
    needed_bytes: int
    available_bytes: int
    adapter: dict[str, Any] = field(default_factory=dict)
    precision: str = ""


class Observer:
    """Sees nothing; override what you want to see. A message without an observer becomes a warning."""

    def on_prepare(self, what: str, share: float) -> None:
        """Data is being made ready: what is done at the moment, and which share of it (0 to 1)."""

    def on_start(self, report: StartReport) -> None:
        """The model stands and the first step is next."""

    def on_step(self, metrics: dict[str, float]) -> None:
        """A step was taken; "step" counts from 1."""

    def on_eval(self, metrics: dict[str, float]) -> None:
        """Held-out data was measured after this many steps."""

    def on_save(self, step: int, path: Path) -> None:
        """A checkpoint is complete on the disk."""

    def on_message(self, text: str) -> None:
        """Something the user should read; may come before `on_start`."""
        warnings.warn(text, stacklevel=2)
