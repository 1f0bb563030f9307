"""What a training shows: a live line on a terminal, plain lines anywhere else; the data report first in both."""

import time
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from seqloom.core.readable import duration, size
from seqloom.numerics.decision_table import decision_lines
from seqloom.train.observer import Observer, StartReport


class Display(Observer):
    """Shows a run on a console; used in a `with` block so that the live line ends cleanly whatever happens."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live: Progress | None = None
        self._line = TaskID(0)
        self._stage = ""

    def __enter__(self) -> "Display":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._end_live()

    def on_prepare(self, what: str, share: float) -> None:
        """A stage of the preparation has come this far (0 to 1)."""
        if self._console.is_terminal:
            if what != self._stage:
                self._start_live(what, total=1.0, completed=0.0)
            assert self._live is not None
            self._live.update(self._line, completed=share)
        elif what != self._stage:
            self._say(what)
        self._stage = what

    def on_start(self, report: StartReport) -> None:
        self._end_live()
        self._report, self._began = report, time.monotonic()
        for line in start_lines(report):
            self._say(line)
        if self._console.is_terminal:
            self._start_live("training", total=report.run.train.steps, completed=report.first_step)

    def on_step(self, metrics: dict[str, float]) -> None:
        step, settings = int(metrics["step"]), self._report.run.train
        if self._live is not None:
            self._live.update(self._line, completed=step, numbers="  ".join(self._numbers(metrics)))
        elif step == 1 or step % settings.log_every == 0 or step == settings.steps:
            per_step = (time.monotonic() - self._began) / (step - self._report.first_step)
            left = f"{duration(per_step * (settings.steps - step))} left"
            self._say("  ".join([f"step {step}/{settings.steps}", *self._numbers(metrics), left]))

    def on_eval(self, metrics: dict[str, float]) -> None:
        self._say(f"validation after step {int(metrics['step'])}: {measures(metrics)}")

    def on_save(self, step: int, path: Path) -> None:
        self._say(f"step {step} saved in {path}")

    def on_message(self, text: str) -> None:
        self._say(text)

    def _numbers(self, metrics: dict[str, float]) -> list[str]:
        unit = self._report.unit
        shown = [f"loss {metrics['loss']:.3f}"]
        shown += [f"{metrics[name]:.3f} {words}" for name, words in self._report.shown.items() if name in metrics]
        return [*shown, f"{metrics[f'{unit}_per_second']:,.0f} {unit}/s", size(metrics["memory_bytes"])]

    def _say(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def _start_live(self, what: str, total: float, completed: float) -> None:
        self._end_live()
        counted = [MofNCompleteColumn()] if total > 1 else []
        numbers = TextColumn("{task.fields[numbers]}")
        columns = [TextColumn("{task.description}"), BarColumn(20), *counted, numbers, TimeRemainingColumn()]
        self._live = Progress(*columns, console=self._console)
        self._line = self._live.add_task(what, total=total, completed=int(completed), numbers="")
        self._live.start()

    def _end_live(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None


def start_lines(report: StartReport) -> list[str]:
    """What to read before step 1: the data, the model's size, the memory it will take."""
    formats = sorted(set(report.formats.values()))
    begun = f" of {report.run.init_from}" if report.run.init_from and not report.adapter else ""
    lines = [*report.summary, *adapter_lines(report.adapter)]
    lines.append(
        f"{report.parameters:,} parameters{begun} in {', '.join(formats)} on {report.device}; "
        f"about {size(report.needed_bytes)} of {size(report.available_bytes)} memory needed"
    )
    if report.precision:
        lines.append(f"recipe {report.run.precision.recipe}: {report.precision}")
        lines += [f"  {line}" for line in decision_lines(report.formats)]
    if report.first_step:
        done = report.first_step == report.run.train.steps
        lines.append("already trained to its last step" if done else f"going on after step {report.first_step}")
    return lines


def adapter_lines(adapter: dict[str, Any]) -> list[str]:
    """Which kinds of layers adapters reach, and what they leave as it is."""
    if not adapter:
        return []
    lines = [f"adapters of rank {adapter['rank']} on {adapter['base']}"]
    for row in adapter["coverage"].values():
        reached = ", ".join(row["projections"]) or "none"
        left = f"; untouched: {', '.join(row['untouched'])}" if row["untouched"] else ""
        layers = f"{row['adapted_layers']} of {row['layers']} layers"
        lines.append(f"  {row['name']:18} {layers:>16}, {row['parameters']:>11,} numbers: {reached}{left}")
    return lines


def measures(metrics: dict[str, float]) -> str:
    """Measures by name on one line; counts are whole numbers."""
    shown = {name: f"{value:,}" if isinstance(value, int) else f"{value:.4g}" for name, value in metrics.items()}
    return ", ".join(f"{name.replace('_', ' ')} {text}" for name, text in shown.items() if name != "step")
