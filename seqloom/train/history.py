"""What a run folder tells of its run: settings, data, machine, and every number that was logged.

Works on a run in progress, on one that was interrupted (a torn last line is passed over), and on one that has only
begun. A number that was not finite, or is no number at all, is a gap.

    run.yaml   metrics.jsonl                    always there once a run has begun, and the latter once it has stepped
    data.json  formats.json  machine.json       shown where they are
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from seqloom.core.charts import Array
from seqloom.core.checkpoint.json_file import read_json
from seqloom.core.checkpoint.run_folder import RunFolder
from seqloom.core.config import read_yaml
from seqloom.core.errors import ConfigError
from seqloom.core.logs import read_metrics

RUN, MACHINE, DATA, FORMATS = "run.yaml", "machine.json", "data.json", "formats.json"

Over = Literal["step", "units", "seconds"]


@dataclass(frozen=True)
class History:
    """One run as its folder tells it.

    Attributes:
        settings: the resolved run, and `settings_text` the same as it is written.
        records: lines of the log, in order.
    """

    folder: Path
    settings: dict[str, Any]
    settings_text: str
    records: list[dict[str, Any]]
    data: dict[str, Any]
    formats: dict[str, Any]
    machine: dict[str, Any]

    @property
    def name(self) -> str:
        return self.folder.resolve().name

    @cached_property
    def updated(self) -> datetime | None:
        """When something was last logged, by the local clock."""
        log = RunFolder(self.folder).metrics_path
        return datetime.fromtimestamp(log.stat().st_mtime) if log.exists() else None

    @cached_property
    def steps_wanted(self) -> int | None:
        """The length that the settings ask for."""
        train = self.settings.get("train")
        steps = train.get("steps") if isinstance(train, dict) else None
        return steps if isinstance(steps, int) else None

    @cached_property
    def steps_done(self) -> int:
        """The last step that was logged."""
        return max((record["step"] for record in self.of("train")), default=0)

    @cached_property
    def unit(self) -> str | None:
        """What the loss counts: the name that a `..._per_second` measure goes with."""
        rates = [name for name in self.measures("train") if name.endswith("_per_second")]
        return rates[0].removesuffix("_per_second") if rates else None

    def of(self, kind: str) -> list[dict[str, Any]]:
        """All records of a kind: "train", "valid", "monitor" or "sample"."""
        return self._by_kind.get(kind, [])

    def measures(self, kind: str) -> list[str]:
        """Names of everything that is measured in a kind, in the order in which it first appears."""
        names: dict[str, Any] = {}
        for record in self.of(kind):
            names.update(record)
        return [name for name in names if name not in ("step", "kind")]

    def points(self, kind: str, measure: str, over: Over = "step") -> Array:
        """A measure as points of a chart [N, 2], NaN where it is no number; records without it are passed over.

        Args:
            over: steps, units learned from, or seconds spent.
        """
        kept = [record for record in self.of(kind) if measure in record]
        steps = np.array([record["step"] for record in kept], dtype=np.float64)
        values = [record[measure] for record in kept]
        if not set(map(type, values)) <= {float}:
            values = [number(value) for value in values]
        return np.stack([self._places(steps, over), np.array(values, dtype=np.float64)], axis=1)

    def last(self, kind: str, measure: str) -> float | None:
        """The newest value that is a number."""
        values = (number(record.get(measure)) for record in reversed(self.of(kind)))
        return next((value for value in values if value is not None), None)

    @cached_property
    def _by_kind(self) -> dict[str, list[dict[str, Any]]]:
        found: dict[str, list[dict[str, Any]]] = {}
        for record in self.records:
            found.setdefault(str(record.get("kind")), []).append(record)
        return found

    def _places(self, steps: Array, over: Over) -> Array:
        """Where steps lie on another axis: as their training records say, or on the line between its neighbours."""
        if over == "step":
            return steps
        known = self.points("train", over if over == "seconds" else self.unit or "")
        known = known[np.isfinite(known[:, 1])]
        if len(known) == 0:
            return np.full(len(steps), np.nan)
        return np.interp(steps, [0.0, *known[:, 0]], [0.0, *known[:, 1]])


def read_history(folder: Path) -> History:
    """Everything that a run folder tells.

    Raises:
        ConfigError: it is not a run folder, or its settings cannot be read.
        CheckpointError: another of its files is damaged.
    """
    if not (folder / RUN).is_file():
        reason = (
            f"it has no {RUN}" if folder.is_dir() else "it is no folder" if folder.exists() else "it does not exist"
        )
        raise ConfigError(f"{folder}: not a run folder ({reason})")
    log = RunFolder(folder).metrics_path
    return History(
        folder=folder,
        settings=read_yaml(folder / RUN),
        settings_text=(folder / RUN).read_text(encoding="utf-8"),
        records=read_metrics(log) if log.exists() else [],
        data=_facts(folder / DATA),
        formats=_facts(folder / FORMATS),
        machine=_facts(folder / MACHINE),
    )


def number(value: Any) -> float | None:
    """A logged value as a number; None where it is none, or not finite."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:
        return None


def dotted(settings: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Nested settings as dotted paths and plain values."""
    if isinstance(settings, dict | list) and settings:
        for name, part in settings.items() if isinstance(settings, dict) else enumerate(settings):
            yield from dotted(part, f"{path}.{name}" if path else str(name))
    else:
        yield path, settings


def _facts(path: Path) -> dict[str, Any]:
    return read_json(path) if path.exists() else {}
