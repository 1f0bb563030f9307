"""Agents trained for the study of attention: each in a run folder of its own that stays, since it is looked into later.

A run that was stopped goes on where it was, as any training does, and one that is whole is only read.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Literal

from seqloom.core.checkpoint.run_folder import RunFolder
from seqloom.core.logs import MetricsLog, read_metrics
from seqloom.systems.attention_agent import recipes
from seqloom.systems.attention_agent.config import ConvConfig, Run
from seqloom.train.observer import Observer

ATTENTION: Final = "attention"
LSTM: Final = "lstm"
FEED_FORWARD: Final = "feed_forward"
TOP_DOWN, FIXED = "top_down", "fixed"
PONG, PONG_SPEED = "pong", "pong_paper_size"


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What a training left in its folder.

    Attributes:
        curve: steps of the environment -> mean return of evaluation episodes.
        frames_per_second: median while training, acting included.
    """

    variant: str
    seed: int
    run: Run
    folder: Path
    curve: list[tuple[float, float]]
    frames_per_second: float

    @property
    def ret(self) -> float:
        """Mean return of the last evaluation."""
        return self.curve[-1][1]

    def steps_to(self, wanted: float) -> float | None:
        """Steps of the environment after which an evaluation first reached a return."""
        return next((steps for steps, ret in self.curve if ret >= wanted), None)


def train_missing(
    runs: Mapping[str, Run], seeds: int, folder: Path, watch: Observer, ends: float | None
) -> list[Trained]:
    """Train what is not there yet.

    Args:
        runs: variant -> its run, the seed aside.
        folder: holds a run folder for each variant and seed.
        ends: by `time.monotonic`; afterwards nothing is trained any more.
    Raises:
        Interrupted: a signal; the same command goes on.
        CheckpointError: a folder holds a run of other settings.
    """
    from seqloom.train.loop import train

    found = []
    # Seeds outermost: what was cut short then has all variants once, rather than some of them often.
    plan = [(variant, replace(run, seed=seed)) for seed in range(seeds) for variant, run in runs.items()]
    for number, (variant, run) in enumerate(plan):
        place = folder / f"{variant}-{run.seed}"
        if ends is not None and time.monotonic() > ends and not _whole(run, place):
            watch.on_message(f"{variant}, seed {run.seed}: out of time")
            continue
        train(run, place, _Counted(watch, f"training {variant}, {number + 1} of {len(plan)}", run.train.steps))
        found.append(read_trained(variant, run, place))
    return found


def _whole(run: Run, folder: Path) -> bool:
    return MetricsLog(RunFolder(folder).metrics_path).holds("valid", run.train.steps)


def read_trained(variant: str, run: Run, folder: Path) -> Trained:
    records = read_metrics(RunFolder(folder).metrics_path)
    frames = float(run.task.environments * run.task.unroll)  # of a step of V-trace
    curve = [(frames * r["step"], float(r["return_mean"])) for r in records if r["kind"] == "valid"]
    speeds = sorted(r["frames_per_second"] for r in records if r["kind"] == "train" and "frames_per_second" in r)
    return Trained(
        variant=variant,
        seed=run.seed,
        run=run,
        folder=folder,
        curve=curve,
        frames_per_second=float(speeds[len(speeds) // 2]),
    )


class _Counted(Observer):
    """Tells how far a training has come."""

    def __init__(self, watch: Observer, what: str, steps: int) -> None:
        self._watch, self._what, self._steps = watch, what, steps

    def on_step(self, metrics: dict[str, float]) -> None:
        self._watch.on_prepare(self._what, metrics["step"] / self._steps)

    def on_message(self, text: str) -> None:
        self._watch.on_message(text)


# Scales ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Scale:
    """Runs of every part of the study, variant -> run."""

    catch: Mapping[str, Run]
    memory: Mapping[str, Run]
    pong: Mapping[str, Run]
    seeds: int


def catch_runs() -> dict[str, Run]:
    """The three cores, equal in everything else, and in steps of the environment."""
    run = recipes.catch()
    return {core: _looked_at(replace(run, model=replace(run.model, core=core))) for core in _CORES}


def memory_runs() -> dict[str, Run]:
    """One query, from memory or always the same."""
    return {TOP_DOWN: _looked_at(recipes.cue_memory()), FIXED: _looked_at(recipes.cue_memory_fixed())}


def small_pong_runs() -> dict[str, Run]:
    """An agent with larger strides and fewer channels, some of whose curve a laptop can wait for; and the paper's for a
    few steps, since only its speed is asked."""
    run = recipes.pong()
    convolutions = ConvConfig(channels=16, kernel=8, stride=4), ConvConfig(channels=32, kernel=4, stride=4)
    model = replace(
        run.model, convolutions=convolutions, vision_channels=32, query_width=64, core_widths=(256, 128), lstm_width=128
    )
    task = replace(run.task, environments=8, group=8, unroll=20, micro_environments=None, evaluate_episodes=2)
    train = replace(run.train, steps=400, evaluate_every=200, save_every=200, clip_norm=1.0)
    schedule = replace(train.schedule, warmup_steps=20)
    optimizer = replace(train.optimizer, lr=1e-3)
    few = replace(train, steps=4, schedule=replace(schedule, warmup_steps=0), log_every=1)
    speed = replace(task, environments=4, group=4, unroll=10, evaluate_episodes=1, evaluate_steps=20)
    return {
        PONG: replace(run, model=model, task=task, train=replace(train, schedule=schedule, optimizer=optimizer)),
        PONG_SPEED: replace(run, task=speed, train=few),
    }


def pong_runs() -> dict[str, Run]:
    """The paper's agent, which acts and learns on one GPU."""
    run = recipes.pong()
    return {PONG: replace(run, task=replace(run.task, group=32, micro_environments=None))}


def _looked_at(run: Run) -> Run:
    """Evaluated often enough to see when it learned."""
    every = max(1, run.train.steps // 15)
    return replace(run, train=replace(run.train, evaluate_every=every))


def with_steps(runs: Mapping[str, Run], steps: int | None) -> dict[str, Run]:
    """The same runs of another length."""
    if steps is None:
        return dict(runs)
    schedule = {name: replace(run.train.schedule, warmup_steps=min(20, steps // 10)) for name, run in runs.items()}
    return {
        name: _looked_at(replace(run, train=replace(run.train, steps=steps, schedule=schedule[name])))
        for name, run in runs.items()
    }


_CORES: Sequence[Literal["attention", "lstm", "feed_forward"]] = (ATTENTION, LSTM, FEED_FORWARD)

SCALES = {
    "laptop": Scale(catch=catch_runs(), memory=memory_runs(), pong=small_pong_runs(), seeds=1),
    "gpu": Scale(catch=catch_runs(), memory=memory_runs(), pong=pong_runs(), seeds=3),
}
