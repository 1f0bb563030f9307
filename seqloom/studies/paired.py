"""Variants of a model trained over the same seeds, and how far apart they end.

All variants of a seed see the same batches, so what chance does to one batch it does to all of them. A difference is
formed seed by seed, and only then averaged; beside its mean stands the interval that holds the true mean with 95 %
certainty, by Student's t. One seed gives no interval, and no difference within an interval counts as shown.
"""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import mean, stdev
from typing import Annotated, Any, ClassVar, Literal

from seqloom.core.charts import Line, LineChart, smooth
from seqloom.core.config import Ge, Gt, MinLen, config
from seqloom.core.errors import ConfigError
from seqloom.data.config import DataConfig, SourceConfig
from seqloom.studies.trial import Digest, Trial, run_trial, stored_trial
from seqloom.systems.hybrid_lm.budget import budget
from seqloom.systems.hybrid_lm.config import HybridConfig, Run, TextTaskConfig
from seqloom.train.config import OptimizerConfig, ScheduleConfig, TrainConfig
from seqloom.train.observer import Observer
from seqloom.train.run import Run as AnyRun

STUDENT = (12.71, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)
"""Two-sided 95 % points of Student's t for 1, 2, ... degrees of freedom; beyond these 2.2 is close enough."""


@config
class PairedOptions:
    """What every study of trained variants can be told."""

    scale: Literal["laptop", "small"] = "laptop"
    """laptop: some minutes on two cores; small: 10 to 20 M parameters, hours. Stopped or out of time, either goes on
    where it was."""
    data: Annotated[tuple[str, ...], MinLen(1)] = ("python:stdlib",)
    """Text to learn: files, folders, or a built-in corpus."""
    seeds: Annotated[int, Ge(1)] | None = None
    """Runs of every variant."""
    steps: Annotated[int, Ge(8)] | None = None
    """Length of every run."""
    minutes: Annotated[float, Gt(0)] | None = None
    """Begin no run that would end after so many minutes; what is missing is left for the next time."""


@dataclass(frozen=True, kw_only=True)
class Scale:
    """A size at which variants are compared.

    Attributes:
        models: variant -> shapes.
        run: everything but shapes, text and seed.
    """

    models: Mapping[str, HybridConfig]
    run: Run
    seeds: int

    def runs(self, options: PairedOptions) -> dict[str, Run]:
        """Variant -> run, as the options ask for it."""
        data = replace(self.run.task.data, sources=tuple(SourceConfig(path=path) for path in options.data))
        steps = options.steps or self.run.train.steps
        schedule = replace(self.run.train.schedule, warmup_steps=max(1, steps // 20))
        train = replace(self.run.train, steps=steps, schedule=schedule, monitor_every=max(1, steps // 50))
        run = replace(self.run, task=replace(self.run.task, data=data), train=train)
        return {variant: replace(run, model=model) for variant, model in self.models.items()}


@dataclass(frozen=True)
class Difference:
    """By how much one variant's measure is above another's, as a share, over paired seeds.

    Attributes:
        half: half the width of the 95 % interval; None of a single seed.
    """

    mean: float
    half: float | None
    seeds: int

    @property
    def above(self) -> bool:
        """Beyond what chance explains."""
        return self.mean - (self.half or 0.0) > 0

    @property
    def below(self) -> bool:
        return self.mean + (self.half or 0.0) < 0

    def at_most(self, limit: float) -> bool | None:
        """Whether the measure is no further above than that; None where the interval holds both answers."""
        if self.mean + (self.half or 0.0) <= limit:
            return True
        return False if self.mean - (self.half or 0.0) > limit else None

    def __str__(self) -> str:
        spread = "one seed" if self.half is None else f"± {self.half:.2%} over {self.seeds} seeds"
        return f"{self.mean:+.2%} ({spread})"

    def beside(self, limit: float) -> str:
        """In words, for a claim about that limit."""
        return str(self) if self.at_most(limit) is not None else f"{self}; the interval holds both answers"


def shown(gap: Difference | None) -> str:
    """A gap of thousandths, in a table."""
    if gap is None:
        return "-"
    return f"{gap.mean:+.3%}" + ("" if gap.half is None else f" ± {gap.half:.3%}")


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One training."""

    variant: str
    seed: int
    trial: Trial


@dataclass(frozen=True, kw_only=True)
class Variants:
    """All trainings of a study, of any system.

    Attributes:
        runs: variant -> its run, the seed aside.
        cells: those trained so far.
        measure, shown: what variants are compared by unless something else is asked for, and how it is told.
        nats: what the training loss is counted in.
    """

    measure: ClassVar[str]
    shown: ClassVar[str]
    nats: ClassVar[str]

    scale: str
    runs: Mapping[str, AnyRun]
    seeds: int
    cells: list[Cell] = field(default_factory=list)

    def trials(self, variant: str) -> dict[int, Trial]:
        """By seed, those that came to their end."""
        return {cell.seed: cell.trial for cell in self.cells if cell.variant == variant and cell.trial.valid}

    def values(self, variant: str, measure: str) -> dict[int, float]:
        """A measure of held-out data after the last step, by seed."""
        return {s: trial.valid[measure] for s, trial in self.trials(variant).items() if measure in trial.valid}

    def mean(self, variant: str, measure: str) -> float | None:
        found = self.values(variant, measure)
        return mean(found.values()) if found else None

    def difference(self, variant: str, other: str, measure: str | None = None) -> Difference | None:
        """How far a variant's measure is above another's; None without a seed that both have."""
        mine, theirs = (self.values(each, measure or self.measure) for each in (variant, other))
        both = sorted(seed for seed in mine.keys() & theirs.keys() if theirs[seed])  # nothing is a share of zero errors
        return difference([mine[seed] / theirs[seed] - 1 for seed in both])

    def remarks(self) -> list[str]:
        """What is to be said of any such study."""
        planned, there = len(self.runs) * self.seeds, sum(len(self.trials(variant)) for variant in self.runs)
        told = [f"{there} of {planned} runs were trained to their end."]
        told += [f"{cell.variant}, seed {cell.seed}: {cell.trial.ended}" for cell in self.cells if cell.trial.ended]
        if self.seeds == 1:
            told.append("There is one seed; how far chance alone moves a figure cannot be told from it.")
        return told

    def data(self) -> list[dict[str, Any]]:
        """Every run, as plain data."""
        return [
            {
                "variant": cell.variant,
                "seed": cell.seed,
                "valid": cell.trial.valid,
                "step_seconds": cell.trial.step_seconds,
                "ended": cell.trial.ended,
            }
            for cell in self.cells
        ]

    def curves(self) -> LineChart:
        """The loss while learning, of each variant's first seed."""
        lines = [
            Line(name=cell.variant, points=smooth(list(enumerate(cell.trial.losses, start=1)), 0.05), colour=number)
            for number, variant in enumerate(self.runs)
            for cell in self.cells
            if (cell.variant, cell.seed) == (variant, 0)
        ]
        return LineChart(title="Training loss", x="step", y=self.nats, lines=lines)


@dataclass(frozen=True, kw_only=True)
class Paired(Variants):
    """Trainings of language models."""

    measure = "bits_per_byte"
    shown = "{:.4f} bits per byte"
    nats = "nats per token"

    runs: Mapping[str, Run]

    def row(self, variant: str) -> tuple[str, ...]:
        """Size and quality of a variant for a table; see HEADINGS."""
        cost, found = budget(self.runs[variant].model), self.values(variant, "bits_per_byte")
        seconds = [trial.step_seconds for trial in self.trials(variant).values()]
        return (
            variant,
            self.runs[variant].model.pattern,
            f"{(cost.parameters + cost.mtp_parameters) / 1e6:.2f}",
            f"{cost.active_with_head / 1e6:.2f}",
            f"{mean(found.values()):.4f}" if found else "-",
            ", ".join(f"{found[seed]:.4f}" for seed in sorted(found)) or "-",
            f"{mean(seconds):.2f}" if seconds else "-",
        )

    def settings(self) -> dict[str, str]:
        """Under which conditions, for a report."""
        run = next(iter(self.runs.values()))
        task, train = run.task, run.train
        machines = sorted({cell.trial.machine for cell in self.cells})
        formats = sorted({str(cell.trial.settings["precision"]["activations"]) for cell in self.cells})
        return {
            "scale": self.scale,
            "text": ", ".join(source.title for source in task.data.sources),
            "step": f"{task.batch_rows} rows of {task.sequence_length} tokens",
            "training": f"{train.steps} steps of {train.optimizer.kind}, "
            f"{train.steps * task.batch_rows * task.sequence_length / 1e6:.2f} M tokens",
            "seeds": str(self.seeds),
            "computed in": f"{', '.join(formats)} on {', '.join(machines)}" if machines else "not yet",
        }


HEADINGS = ("variant", "layers", "M parameters", "M active", "bits per byte", "by seed", "seconds a step")


def difference(shares: Sequence[float]) -> Difference | None:
    """The mean of paired differences with its interval; None of none."""
    if not shares:
        return None
    count = len(shares)
    if count == 1:
        return Difference(shares[0], None, 1)
    student = STUDENT[count - 2] if count - 2 < len(STUDENT) else 2.2
    return Difference(mean(shares), student * stdev(shares) / math.sqrt(count), count)


def train_paired(scale: Scale, options: PairedOptions, folder: Path, watch: Observer, watched: Digest) -> Paired:
    """Train what is missing of language models, as far as the time allows; the rest as in `train_variants`."""
    found = Paired(scale=options.scale, runs=scale.runs(options), seeds=options.seeds or scale.seeds)
    train_variants(found, options.minutes, folder, watch, watched)
    return found


def train_variants(
    found: Variants, minutes: float | None, folder: Path, watch: Observer, watched: Digest = lambda record: {}
) -> None:
    """Train what is missing, as far as the time allows, and put it among the cells.

    Args:
        minutes: begin no run that would end later.
        watched: what to keep of each record of a run's monitor.
    Raises:
        ConfigError: nothing could be trained in the time given.
        Interrupted: finished runs are stored, and the same command goes on.
    """
    began, spent = time.monotonic(), list[float]()
    # Seeds outermost: what was cut short then has all variants once, rather than some of them often.
    plan = [(seed, variant) for seed in range(found.seeds) for variant in found.runs]
    for number, (seed, variant) in enumerate(plan, start=1):
        run = replace(found.runs[variant], seed=seed)
        path = folder / "trials" / f"{found.scale}-{variant}-{seed}.json"
        trial = stored_trial(run, path)
        if trial is None:
            start = time.monotonic()
            if minutes is not None and start - began + (max(spent) if spent else 0) > 60 * minutes:
                continue
            trial = _train(run, path, watch, watched, number, len(plan))
            spent.append(time.monotonic() - start)
            value = trial.valid.get(found.measure)
            outcome = trial.ended if value is None else found.shown.format(value)
            watch.on_message(f"{number}/{len(plan)}  {variant}, seed {seed}: {outcome}")
        found.cells.append(Cell(variant=variant, seed=seed, trial=trial))
    if not found.cells:
        raise ConfigError(f"--minutes: {minutes:g} are too few for a single run")


def _train(run: AnyRun, path: Path, watch: Observer, watched: Digest, number: int, total: int) -> Trial:
    steps = run.train.steps

    def judge(losses: list[float]) -> str | None:
        watch.on_prepare(f"{total} runs of {steps} steps", (number - 1 + len(losses) / steps) / total)
        return None

    return run_trial(run, path, watch, judge=judge, watched=watched)


def text_run(
    name: str, task: type[TextTaskConfig], model: HybridConfig, *, sequence_length: int, batch_rows: int, steps: int
) -> Run:
    """A training as the recipes do it: Muon, a plateau, and a decay over the last two fifths.

    Args:
        model: a stand-in; each variant brings its own.
    """
    return Run(
        name=name,
        model=model,
        task=task(
            data=DataConfig(sources=(SourceConfig(path="python:stdlib"),)),
            sequence_length=sequence_length,
            batch_rows=batch_rows,
            micro_rows=min(8, batch_rows),
            evaluate_rows=64,
        ),
        train=TrainConfig(
            steps=steps,
            optimizer=OptimizerConfig(kind="muon", lr=4e-3, muon_lr=0.03),
            schedule=ScheduleConfig(kind="wsd", decay_fraction=0.4),
        ),
    )
