"""Recognisers trained side by side: what the studies of speech recognition have in common.

Variants of a seed hear the same utterances; they are compared by the character error rate of held-out speakers, without
a language model. The paper's word error rates are with one unless it says otherwise, of 11 940 hours of speech, so only
directions and ratios can be held against each other, never the rates themselves.
Paper: Deep Speech 2 (arXiv 1512.02595).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Annotated, Literal

from seqloom.core.config import Ge, Gt, MinLen, config
from seqloom.data.config import SourceConfig
from seqloom.studies.paired import Difference, Variants, train_variants
from seqloom.studies.study import Claim, Findings, Table
from seqloom.systems.deep_speech2.budget import parameters
from seqloom.systems.deep_speech2.config import LETTERS, ConvConfig, FeatureConfig, RecurrentConfig, Run
from seqloom.systems.deep_speech2.recipes import tiny
from seqloom.train.observer import Observer

SOURCE = "Deep Speech 2, arXiv 1512.02595"
LAPTOP_CONV = (ConvConfig(channels=8, kernel=(11, 11), stride=(2, 2)),)
GPU_CONV = (
    ConvConfig(channels=32, kernel=(41, 11), stride=(2, 2)),
    ConvConfig(channels=32, kernel=(21, 11), stride=(2, 1)),
)


@config
class SpeechOptions:
    """What every study of trained recognisers can be told."""

    scale: Literal["laptop", "gpu"] = "laptop"
    """laptop: small models, some minutes on one core; gpu: wider and deeper ones. Stopped or out of time, either goes
    on where it was."""
    data: Annotated[tuple[str, ...], MinLen(1)] = (LETTERS,)
    """Speech to learn: folders, lists, or a synthetic source, as in a run."""
    seeds: Annotated[int, Ge(1)] | None = None
    """Runs of every variant."""
    steps: Annotated[int, Ge(8)] | None = None
    """Length of every run, in steps of 16 utterances (gpu: 32)."""
    minutes: Annotated[float, Gt(0)] | None = None
    """Begin no run that would end after so many minutes; what is missing is left for the next time."""


@dataclass(frozen=True, kw_only=True)
class Scale:
    """A size at which variants are compared.

    Attributes:
        runs: variant -> its run; data, length and seed aside.
    """

    runs: Mapping[str, Run]
    seeds: int

    def planned(self, options: SpeechOptions) -> "Recognisers":
        """The variants as the options ask for them, with nothing trained yet."""
        sources = tuple(SourceConfig(path=path) for path in options.data)
        runs = {}
        for variant, run in self.runs.items():
            task = replace(run.task, data=replace(run.task.data, sources=sources))
            steps = options.steps or run.train.steps
            schedule = replace(run.train.schedule, warmup_steps=max(1, min(steps // 10, 20)))
            runs[variant] = replace(run, task=task, train=replace(run.train, steps=steps, schedule=schedule))
        return Recognisers(scale=options.scale, runs=runs, seeds=options.seeds or self.seeds)


@dataclass(frozen=True, kw_only=True)
class Recognisers(Variants):
    """Trainings of recognisers."""

    measure = "cer"
    shown = "CER {:.2%}"
    nats = "nats per utterance"

    runs: Mapping[str, Run]

    def settings(self) -> dict[str, str]:
        """Under which conditions, for a report."""
        run = next(iter(self.runs.values()))
        machines = sorted({cell.trial.machine for cell in self.cells})
        measured = sorted({int(cell.trial.valid["utterances"]) for cell in self.cells if cell.trial.valid})
        return {
            "scale": self.scale,
            "speech": ", ".join(source.title for source in run.task.data.sources),
            "training": f"{run.train.steps} steps of {run.task.batch_rows} utterances, {run.train.optimizer.kind}",
            "measured on": f"{', '.join(map(str, measured)) or 'no'} held-out utterances, greedy decoding",
            "seeds": str(self.seeds),
            "computed on": ", ".join(machines) or "nothing yet",
        }

    def table(self, title: str, paper: Mapping[str, str], *more: tuple[str, str]) -> Table:
        """All variants beside the paper's figures.

        Args:
            paper: variant -> its figure there.
            more: further measures: heading, name.
        """
        measures = [("CER", "cer"), ("WER", "wer"), *more]

        def cell(variant: str, measure: str) -> str:
            found = self.mean(variant, measure)
            return "-" if found is None else f"{found:.2%}"

        rows = []
        for variant, run in self.runs.items():
            cers, loss = self.values(variant, "cer"), self.mean(variant, "loss")
            seconds = [trial.step_seconds for trial in self.trials(variant).values()]
            rows.append(
                (
                    variant,
                    paper.get(variant, "-"),
                    *(cell(variant, measure) for _, measure in measures),
                    "-" if loss is None else f"{loss:.2f}",
                    ", ".join(f"{cers[seed]:.2%}" for seed in sorted(cers)) or "-",
                    f"{parameters(run.model) / 1e6:.2f}",
                    f"{mean(seconds):.3f}" if seconds else "-",
                )
            )
        headings = ("variant", "paper", *(f"{name} here" for name, _ in measures))
        headings += ("nats an utterance", "CER by seed", "M parameters", "seconds a step")
        return Table(title=title, headings=headings, rows=rows, note="The paper's figures are word error rates.")

    def findings(self, title: str, tables: list[Table], claims: list[Claim], *remarks: str) -> Findings:
        """What a study says, with what is to be said of all of them."""
        return Findings(
            title=title,
            source=SOURCE,
            setting=self.settings(),
            tables=tables,
            claims=claims,
            remarks=[
                *self.remarks(),
                *remarks,
                "Models here are hundreds of times smaller, and so is their speech; only directions can be compared.",
            ],
            charts=[self.curves()],
            data={"runs": self.data()},
        )


def train_recognisers(scale: Scale, options: SpeechOptions, folder: Path, watch: Observer) -> Recognisers:
    """Train what is missing, as far as the time allows; raises as `train_variants`."""
    found = scale.planned(options)
    train_variants(found, options.minutes, folder, watch)
    return found


def judged(name: str, says: str, paper: str, gap: Difference | None, holds: Callable[[Difference], bool]) -> Claim:
    """A claim about a difference; not measured where a side is missing."""
    return Claim(
        name=name,
        says=says,
        paper=paper,
        here="needs both variants of one seed, trained to the end" if gap is None else str(gap),
        holds=None if gap is None else holds(gap),
    )


def recogniser(
    name: str, scale: str, steps: int, *, layers: int = 2, width: int | None = None, kind: Literal["rnn", "gru"] = "rnn"
) -> Run:
    """A training as `deep_speech2/tiny` does it, at one of the two sizes, with two directions and batch normalization.

    Args:
        width: of recurrent layers; by default 96, and 512 on a GPU.
    """
    run, gpu = tiny(), scale == "gpu"
    model = replace(
        run.model,
        features=FeatureConfig(bins=161 if gpu else 64),
        conv=GPU_CONV if gpu else LAPTOP_CONV,
        recurrent=RecurrentConfig(kind=kind, layers=layers, width=width or (512 if gpu else 96)),
    )
    task = replace(run.task, batch_rows=32 if gpu else 16, evaluate_rows=256 if gpu else 48)
    optimizer = replace(run.train.optimizer, lr=1e-3 if gpu else 4e-3)
    return replace(
        run, name=name, model=model, task=task, train=replace(run.train, steps=steps, optimizer=optimizer, threads=None)
    )
