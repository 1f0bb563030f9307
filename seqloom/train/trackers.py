"""Where the numbers of a run go: metrics.jsonl always, and trackers that the run names.

A tracker is a class found by its name in the entry point group "seqloom.trackers", so another package can bring one.
Each is made with the run folder, the settings, and the steps already done; a resumed run goes on in the same record.
"""

import uuid
from collections.abc import Callable, Mapping
from importlib.metadata import entry_points
from pathlib import Path
from typing import Protocol

from seqloom.core.config import to_data, to_yaml
from seqloom.core.errors import ConfigError
from seqloom.core.extras import require
from seqloom.core.logs import MetricsLog
from seqloom.train.run import Run

GROUP = "seqloom.trackers"


class Tracker(Protocol):
    """A place for numbers outside the run folder's own log."""

    def log(self, step: int, values: dict[str, float]) -> None:
        """Record the numbers of a step, named like "train/loss"."""
        ...

    def close(self) -> None:
        """Send what is pending; called once, also after an error."""
        ...


class Records:
    """All places that the numbers of a run go to; closes them when its `with` block ends.

    A tracker talks to packages and servers of others. Trouble there does not end a training: it is reported once, the
    tracker is left out from then on, and the run's own log goes on.
    """

    def __init__(self, log: MetricsLog, trackers: dict[str, Tracker], report: Callable[[str], None]) -> None:
        self._log = log
        self._trackers = trackers
        self._report = report

    def __enter__(self) -> "Records":
        return self

    def __exit__(self, *error: object) -> None:
        self._tell(lambda tracker: tracker.close())

    def add(self, kind: str, metrics: Mapping[str, float]) -> None:
        """Record the metrics of one step.

        Args:
            kind: "train", "valid", "monitor" or "left_out".
            metrics: holds "step" among them.
        """
        step = int(metrics["step"])
        self._log.append({"step": step, "kind": kind, **metrics})
        values = {f"{kind}/{name}": value for name, value in metrics.items() if name != "step"}
        self._tell(lambda tracker: tracker.log(step, values))

    def note(self, kind: str, step: int, texts: Mapping[str, str]) -> None:
        """Record what is to be read rather than plotted; trackers, which plot, are not told."""
        self._log.append({"step": step, "kind": kind, **texts})

    def holds(self, kind: str, step: int) -> bool:
        """Whether the run's own log has a line of this kind for a step."""
        return self._log.holds(kind, step)

    def cut(self, step: int) -> None:
        """Take back the run's own log to a step; trackers keep what they were told."""
        self._log.truncate(step)

    def _tell(self, act: Callable[[Tracker], None]) -> None:
        for name, tracker in list(self._trackers.items()):
            try:
                act(tracker)
            except Exception as error:
                del self._trackers[name]
                self._report(f"tracker '{name}' failed and is left out from here on: {error}")


def open_records(run: Run, folder: Path, first_step: int, report: Callable[[str], None]) -> Records:
    """Open the log, cut back to the steps already done, and the trackers that the run names.

    Args:
        report: told when a tracker fails later.
    Raises:
        ConfigError: a tracker is unknown (the known ones are listed), not installed, or does not start.
    """
    known = {point.name: point for point in entry_points(group=GROUP)}
    for name in run.train.trackers:
        if name not in known:
            raise ConfigError(f"train.trackers: unknown tracker '{name}'; found here: {', '.join(sorted(known))}")
    trackers: dict[str, Tracker] = {}
    for name in run.train.trackers:
        try:
            trackers[name] = known[name].load()(folder, run, first_step)
        except Exception as error:
            raise ConfigError(f"train.trackers: '{name}' does not start: {error}") from error
    log = MetricsLog(folder / "metrics.jsonl")
    log.truncate(first_step)
    return Records(log, trackers, report)


class TensorBoardTracker:
    """Event files under RUN/tensorboard; events after the resumed step are hidden."""

    def __init__(self, folder: Path, run: Run, first_step: int) -> None:
        require("track", "tensorboard")
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=first_step + 1)
        self._writer.add_text("run", f"```\n{to_yaml(run)}```", first_step)

    def log(self, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class WandbTracker:
    """Weights & Biases; where the data goes is set by its own environment variables (WANDB_MODE, WANDB_PROJECT)."""

    def __init__(self, folder: Path, run: Run, first_step: int) -> None:
        wandb = require(None, "wandb")
        name = _remembered(folder / "wandb.id", first_step) or uuid.uuid4().hex
        self._run = wandb.init(name=folder.name, id=name, resume="allow", dir=str(folder), config=to_data(run))
        (folder / "wandb.id").write_text(name, encoding="utf-8")

    def log(self, step: int, values: dict[str, float]) -> None:
        self._run.log(values, step=step)

    def close(self) -> None:
        self._run.finish()


class TrackioTracker:
    """Trackio, the local-first tracker."""

    def __init__(self, folder: Path, run: Run, first_step: int) -> None:
        trackio = require(None, "trackio")
        name = _remembered(folder / "trackio.id", first_step) or f"{folder.name}-{uuid.uuid4().hex[:8]}"
        self._run = trackio.init(project="seqloom", name=name, resume="allow", config=to_data(run))
        (folder / "trackio.id").write_text(name, encoding="utf-8")

    def log(self, step: int, values: dict[str, float]) -> None:
        self._run.log(values, step=step)

    def close(self) -> None:
        self._run.finish()


class MlflowTracker:
    """MLflow; the server is set by its own environment variable (MLFLOW_TRACKING_URI)."""

    def __init__(self, folder: Path, run: Run, first_step: int) -> None:
        self._mlflow = require(None, "mlflow")
        known = _remembered(folder / "mlflow.id", first_step)
        started = self._mlflow.start_run(run_id=known, run_name=None if known else folder.name)
        self._mlflow.log_dict(to_data(run), "run.json")
        (folder / "mlflow.id").write_text(started.info.run_id, encoding="utf-8")

    def log(self, step: int, values: dict[str, float]) -> None:
        self._mlflow.log_metrics(values, step=step)

    def close(self) -> None:
        self._mlflow.end_run()


def _remembered(path: Path, first_step: int) -> str | None:
    """The name a tracker knows a resumed run by; a new run gets a new one."""
    return path.read_text(encoding="utf-8") if first_step and path.exists() else None
