"""Several runs beside one another: their measures, the settings in which they differ, and their curves overlaid.

The curves can be read by step, by what was learned from, and by time, since a run that wins by one of them may lose by
another. Runs in progress and runs that were interrupted take part with what they have.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from seqloom.core import page
from seqloom.core.charts import Line, LineChart, known, smooth
from seqloom.core.errors import ConfigError
from seqloom.core.page import Html
from seqloom.core.readable import count, duration, short, size, words
from seqloom.train.history import History, Over, dotted, number
from seqloom.train.report_page import COUNTS, SMOOTHED_FROM

BETTER: dict[str, Literal["less", "more"]] = {
    "loss": "less", "bits_per_byte": "less", "perplexity": "less", "wer": "less", "cer": "less", "return_mean": "more",
}  # fmt: skip
"""Validation measures of how well a model does."""
NO_SETTING = "(none)"


@dataclass(frozen=True)
class Measure:
    """One row of the table.

    Attributes:
        values: one for each run, None where it has none.
        form: how a value is written.
    """

    name: str
    values: Sequence[float | None]
    form: Callable[[float], str]
    better: Literal["less", "more"] | None = None

    @property
    def best(self) -> int | None:
        """Which run is better than all others in it."""
        ranked = [(value, place) for place, value in enumerate(self.values) if value is not None]
        ranked.sort(reverse=self.better == "more")
        return ranked[0][1] if self.better and len(ranked) > 1 and ranked[0][0] != ranked[1][0] else None

    def cells(self) -> list[str]:
        """The values as text."""
        return ["–" if value is None else self.form(value) for value in self.values]


class Comparison:
    """Runs beside one another.

    Attributes:
        names: of the runs, no two alike.
        measures: rows of the table; those that no run has are left out.
        settings: dotted path -> a value for each run, where they differ.
    """

    def __init__(self, runs: Sequence[History]) -> None:
        """
        Raises:
            ConfigError: there are fewer than two.
        """
        if len(runs) < 2:
            raise ConfigError(f"{len(runs)} run given; a comparison needs two or more run folders")
        self.runs = runs
        seen = Counter(run.name for run in runs)
        self.names = [run.name if seen[run.name] == 1 else str(run.folder) for run in runs]
        self.measures = [measure for measure in self._measures() if any(v is not None for v in measure.values)]
        self.settings = _differing([dict(dotted(run.settings)) for run in runs])

    @property
    def unit(self) -> str | None:
        """What all runs count, if they count the same."""
        units = {run.unit for run in self.runs}
        return units.pop() if len(units) == 1 else None

    def data(self) -> dict[str, Any]:
        """Everything as plain data."""
        return {
            "runs": [
                {"name": name, "folder": str(run.folder)} for name, run in zip(self.names, self.runs, strict=True)
            ],
            "measures": {measure.name: list(measure.values) for measure in self.measures},
            "settings": self.settings,
        }

    def losses(self) -> dict[str, LineChart]:
        """Training losses in versions that differ in their horizontal axis."""
        return self._versions("train", "loss", "Training loss")

    def charts(self) -> list[LineChart]:
        """Further curves by step."""
        shared = dict.fromkeys(name for run in self.runs for name in run.measures("valid"))
        charts = [self._chart("valid", name, f"Validation {words(name)}") for name in shared if name in BETTER]
        charts += [self._chart("train", "lr", "Learning rate"), self._chart("train", "grad_norm", "Gradient norm")]
        if self.unit:
            charts.append(self._chart("train", f"{self.unit}_per_second", f"Throughput, {self.unit} per second"))
        return [chart for chart in charts if any(len(line.points) for line in chart.lines)]

    def html(self) -> Html:
        """The page."""
        title = " · ".join(self.names)
        rows = [[measure.name, *measure.cells()] for measure in self.measures]
        best = {row: measure.best + 1 for row, measure in enumerate(self.measures) if measure.best is not None}
        settings = [[path, *map(_setting, values)] for path, values in self.settings.items()]
        where = ", ".join(str(run.folder) for run in self.runs)
        body = [
            f'<h1>{page.text(title)}</h1><p class="about">{page.text(where)}</p>',
            page.section("Loss", page.choice("loss", self.losses())),
            page.section("Measures", page.table("Measures", ["", *self.names], rows, best)),
            page.section("Course", page.grid(page.figure(chart) for chart in self.charts())),
            page.section(
                "Settings that differ",
                page.table("Settings", ["setting", *self.names], settings) if settings else "<p>None.</p>",
            ),
        ]
        return page.page(title, body)

    def _measures(self) -> Iterator[Measure]:
        yield Measure("steps", [run.steps_done for run in self.runs], count)
        if self.unit:
            yield Measure(self.unit, self._last("train", self.unit), count)
        yield Measure("time", self._last("train", "seconds"), duration)
        yield Measure("parameters", [number(run.machine.get("parameters")) for run in self.runs], count)
        yield Measure("training loss, smoothed", [_smoothed_end(run) for run in self.runs], _four, "less")
        counts = (self.unit, *COUNTS)
        for name in dict.fromkeys(name for run in self.runs for name in run.measures("valid") if name not in counts):
            better = BETTER.get(name)
            yield Measure(f"validation {words(name)}", self._last("valid", name), _four, better)
            if better:
                word = "least" if better == "less" else "greatest"
                best = [_best(run, name, better) for run in self.runs]
                yield Measure(f"{word} validation {words(name)}", [value for value, _ in best], _four, better)
                yield Measure(f"{word} validation {words(name)}, at step", [step for _, step in best], count)
        if self.unit:
            rates = [_median(run, f"{self.unit}_per_second") for run in self.runs]
            yield Measure(f"{self.unit} per second, median", rates, short, "more")
        yield Measure("peak memory", self._last("train", "memory_bytes"), size, "less")

    def _last(self, kind: str, measure: str) -> list[float | None]:
        return [run.last(kind, measure) for run in self.runs]

    def _versions(self, kind: str, measure: str, title: str) -> dict[str, LineChart]:
        versions = {"by step": self._chart(kind, measure, title)}
        if self.unit:
            versions[f"by {self.unit}"] = self._chart(kind, measure, title, "units", self.unit)
        versions["by time"] = self._chart(kind, measure, title, "seconds", "seconds")
        return versions

    def _chart(self, kind: str, measure: str, title: str, over: Over = "step", x: str = "step") -> LineChart:
        lines = []
        for colour, (name, run) in enumerate(zip(self.names, self.runs, strict=True)):
            points = run.points(kind, measure, over)
            if kind == "train" and len(points) >= SMOOTHED_FROM and measure != "lr":
                lines.append(Line(name=name, points=points, colour=colour, faint=True))
                points = smooth(points)
            lines.append(Line(name=name, points=points, colour=colour, dots=kind == "valid"))
        return LineChart(title=title, x=x, y="", lines=lines)


def _differing(settings: Sequence[dict[str, Any]]) -> dict[str, list[Any]]:
    """Paths whose values are not the same everywhere, in the order in which they first appear."""
    paths = dict.fromkeys(path for run in settings for path in run)
    rows = {path: [run.get(path, NO_SETTING) for run in settings] for path in paths}
    return {path: row for path, row in rows.items() if any(value != row[0] for value in row)}


def _smoothed_end(run: History) -> float | None:
    smoothed = known(smooth(run.points("train", "loss"), share=0.05))
    return float(smoothed[-1, 1]) if len(smoothed) else None


def _best(run: History, name: str, better: Literal["less", "more"]) -> tuple[float | None, float | None]:
    """The smallest or largest value of a validation measure, and its step."""
    points = known(run.points("valid", name))
    if len(points) == 0:
        return None, None
    values = points[:, 1]
    step, value = points[values.argmin() if better == "less" else values.argmax()].tolist()
    return value, step


def _median(run: History, name: str) -> float | None:
    points = known(run.points("train", name))
    return float(np.median(points[:, 1])) if len(points) else None


def _four(value: float) -> str:
    return short(value, 4)


def _setting(value: Any) -> str:
    return "null" if value is None else str(value)
