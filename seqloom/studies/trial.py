"""One training of a study: the public loop in a folder of its own, of which only the numbers stay.

A trial is stored with its settings, and one of other settings is as good as none, so a study goes on where it was
stopped and never mixes what does not belong together. The loop saves a checkpoint after the last evaluation; a trial
needs none, and ends there.
"""

import contextlib
import json
import math
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

from seqloom.core.checkpoint import commit
from seqloom.core.checkpoint.run_folder import RunFolder
from seqloom.core.config import to_data
from seqloom.core.errors import CheckpointError, NumericsError
from seqloom.core.logs import read_metrics
from seqloom.train.interrupt import Interrupted
from seqloom.train.observer import Observer, StartReport
from seqloom.train.run import Run

Judge = Callable[[list[float]], str | None]
"""Told the losses of all steps so far, says why there is no point in going on, or None."""

Digest = Callable[[dict[str, Any]], dict[str, float]]
"""What is kept of one record of the run's monitor."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """What a training left.

    Attributes:
        settings: the run, with everything decided that "auto" leaves open.
        machine: the processor it ran on.
        losses: of every step taken; the batches are those of any trial of the same task and seed.
        valid: measures of held-out data after the last step; empty if it ended before.
        watched: what was kept of the steps that the run's monitor looked at, with the "step".
        step_seconds: median time of a step.
        ended: why it ended before its last step; empty if it did not.
        finite: loss and gradients stayed finite numbers.
    """

    settings: dict[str, Any]
    machine: str
    losses: list[float]
    valid: dict[str, float]
    watched: list[dict[str, float]]
    step_seconds: float
    ended: str = ""
    finite: bool = True


def stored_trial(run: Run, path: Path) -> Trial | None:
    """The trial of this run that a file holds, if it does.

    Raises:
        CheckpointError: the file cannot be read.
    """
    try:
        found = Trial(**json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, TypeError):
        return None  # damaged, or of another version: it is run again
    return found if found.settings == to_data(_resolved(run)) else None


def run_trial(run: Run, path: Path, watch: Observer, *, judge: Judge, watched: Digest) -> Trial:
    """Train, and store the trial.

    Args:
        path: the JSON file to store it in.
        watch: told about the preparation of data, and messages.
        judge: asked after every step.
        watched: what to keep of each record of the run's monitor.
    Raises:
        Interrupted: Ctrl-C or SIGTERM; nothing is stored.
        ConfigError, DataError, CheckpointError: the run cannot be trained here.
    """
    from seqloom.train.loop import train

    run = _resolved(run)
    observer = _Until(watch, judge)
    ended, finite = "", True
    with _workplace(path) as folder:
        try:
            train(run, folder, observer)
        except _EndedError as end:
            ended = str(end)
        except Interrupted as stop:
            stop.args = ("interrupted; finished runs are stored, and the same command goes on with the next one",)
            raise
        except NumericsError as error:
            ended, finite = str(error).split(";")[0], False
        records = read_metrics(RunFolder(folder).metrics_path) if observer.losses else []
    looks = [(record["step"], watched(record)) for record in records if record["kind"] == "monitor"]
    trial = Trial(
        settings=to_data(run),
        machine=observer.machine,
        losses=[_short(loss) for loss in observer.losses],
        valid={name: float(value) for name, value in observer.valid.items()},
        watched=[{"step": step, **{n: _short(v) for n, v in kept.items()}} for step, kept in looks if kept],
        step_seconds=_short(median(observer.seconds or [0.0])),
        ended=ended,
        finite=finite,
    )
    with _writing(path):
        commit.write_file(path, (json.dumps(asdict(trial)) + "\n").encode())
    return trial


@contextlib.contextmanager
def _workplace(path: Path) -> Iterator[str]:
    """A folder beside the file to be, for as long as the training takes."""
    with contextlib.ExitStack() as stack:
        with _writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            folder = stack.enter_context(tempfile.TemporaryDirectory(dir=path.parent, prefix=".trial-"))
        yield folder


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be written: {error.strerror}") from error


class _EndedError(Exception):
    """Ends a training from its observer; empty when all steps were taken."""


class _Until(Observer):
    """Keeps what a trial keeps, and ends the training when its judge has seen enough."""

    def __init__(self, watch: Observer, judge: Judge) -> None:
        self.losses: list[float] = []
        self.seconds: list[float] = []
        self.valid: dict[str, float] = {}
        self.machine = ""
        self._watch, self._judge = watch, judge
        self._unit = ""
        self._before = 0.0

    def on_prepare(self, what: str, share: float) -> None:
        self._watch.on_prepare(what, share)

    def on_start(self, report: StartReport) -> None:
        import torch

        from seqloom.core.machine import machine_facts

        self.machine, self._unit = str(machine_facts(torch.device(report.device))["machine"]), report.unit

    def on_step(self, metrics: dict[str, float]) -> None:
        self.losses.append(metrics["loss"])
        self.seconds.append((metrics[self._unit] - self._before) / metrics[f"{self._unit}_per_second"])
        self._before = metrics[self._unit]
        if (reason := self._judge(self.losses)) is not None:
            raise _EndedError(reason)

    def on_eval(self, metrics: dict[str, float]) -> None:
        self.valid = {name: value for name, value in metrics.items() if math.isfinite(value)}
        raise _EndedError

    def on_message(self, text: str) -> None:
        self._watch.on_message(text)


def _resolved(run: Run) -> Run:
    """The run as a trial trains it on this machine."""
    from seqloom.train.loop import resolve

    steps = run.train.steps
    run = replace(run, train=replace(run.train, log_every=1, evaluate_every=steps, save_every=steps))
    return resolve(run)[0]


def _short(value: float) -> float:
    return float(f"{value:.6g}")
