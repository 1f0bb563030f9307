"""Does an agent that sees only what it attends to learn as well, and is its attention a cause of what it does?

catch    the attention agent beside the same one with an LSTM or a feed-forward core, at equal steps of the environment;
         then, with the trained agent, where attention lies, and what follows when frames are changed
memory   queries from memory beside one that is always the same, where a colour at the beginning asks for a place later
pong     the learning curve and the speed on Atari frames (needs the extra atari)

Paper: attention-augmented agent, section 4, and the claims A3 to A7 that were derived from it for small scales.
"""

import time
from pathlib import Path
from statistics import mean
from typing import Annotated, Literal

from seqloom.core.charts import Line, LineChart
from seqloom.core.config import Ge, Gt, MinLen, config
from seqloom.core.errors import ConfigError
from seqloom.core.extras import require
from seqloom.studies.attention_causes import COVERED, FOLLOWING, Causes, causes
from seqloom.studies.attention_claims import (
    CATCH_BEST,
    REACHED,
    Measured,
    a3,
    a4,
    a5,
    a6,
    a7,
    judged_part,
    saliency,
)
from seqloom.studies.attention_runs import ATTENTION, PONG, PONG_SPEED, SCALES, Trained, train_missing, with_steps
from seqloom.studies.study import Findings, Table
from seqloom.systems.attention_agent.budget import budget
from seqloom.train.observer import Observer

Part = Literal["catch", "memory", "pong"]


@config
class Options:
    """Train agents with attention and without, and change what the trained one sees.

    Stopped or out of time, it goes on where it was when started again.

    Example: seqloom study attention --parts catch memory --out runs/attention
    """

    scale: Literal["laptop", "gpu"] = "laptop"
    """laptop: minutes for each run on one core; gpu: three seeds, and the paper's agent on Pong for 10 M frames."""
    parts: Annotated[tuple[Part, ...], MinLen(1)] = ("catch", "memory", "pong")
    """What to train and report."""
    seeds: Annotated[int, Ge(1)] | None = None
    """Runs of every variant of catch and memory; there is one of Pong."""
    steps: Annotated[int, Ge(8)] | None = None
    """Length of the runs of catch and memory, in optimizer steps."""
    minutes: Annotated[float, Gt(0)] | None = None
    """Begin no run after so many minutes; what is missing is left for the next time."""


def study(options: Options, folder: Path, watch: Observer) -> Findings:
    """Train what is missing, intervene, and judge all that is there.

    Raises:
        Interrupted: a signal; the same command goes on.
        CheckpointError: the folder holds runs of other settings.
    """
    scale = SCALES[options.scale]
    runs = {"catch": with_steps(scale.catch, options.steps), "memory": with_steps(scale.memory, options.steps)}
    runs["pong"] = dict(scale.pong)
    ends = None if options.minutes is None else time.monotonic() + 60 * options.minutes
    trained, missing = dict[str, list[Trained]](), list[str]()
    for part in options.parts:
        seeds = 1 if part == "pong" else options.seeds or scale.seeds
        if part == "pong" and (reason := _no_atari()):
            missing.append(f"Pong was not trained: {reason}")
            continue
        trained[part] = train_missing(runs[part], seeds, folder / "runs" / options.scale, watch, ends)
    found: dict[str, dict[int, Causes]] = {}
    for part, variant in (("catch", ATTENTION), ("pong", PONG)):
        for each in trained.get(part, []):
            if each.variant == variant:
                watch.on_prepare(f"changing what the agent of {part} sees", 0.0)
                found.setdefault(part, {})[each.seed] = causes(each.folder)
    return findings(Measured(scale=options.scale, runs=runs, trained=trained, causes=found, missing=missing))


def _no_atari() -> str:
    try:
        require("atari", "ale_py")
    except ConfigError as error:
        return str(error)
    return ""


def findings(found: Measured) -> Findings:
    """What the runs say, however many there are."""
    return Findings(
        title="Agents that see only what they attend to: learning, and what attention causes",
        source="Towards interpretable reinforcement learning using attention augmented agents, arXiv 1906.02500",
        setting=_setting(found),
        tables=[_learning(found), _near(found), _interventions(found)],
        claims=[
            a3(found),
            *a4(found, judged_part(found)),
            a5(found),
            a6(found),
            a7(found, judged_part(found)),
            saliency(found, judged_part(found)),
        ],
        remarks=[
            *found.missing,
            "Catch and cue_memory are games of this package; the paper's are Atari games over 2 G frames each.",
            "Near, masking, insertion and saliency are judged on Pong where an agent learned it, and else on Catch, "
            "whose attention maps have so few cells that two around an object are half of the image.",
            "A single seed cannot tell how far chance alone moves a figure.",
        ],
        charts=[_curves(found, part) for part in ("catch", "memory", "pong") if found.trained.get(part)],
        data={
            "runs": [
                {
                    "part": part,
                    "variant": each.variant,
                    "seed": each.seed,
                    "curve": each.curve,
                    "frames_per_second": each.frames_per_second,
                    "parameters": budget(each.run.model).parameters,
                }
                for part, some in found.trained.items()
                for each in some
            ],
            "causes": {
                part: {str(seed): each.as_data() for seed, each in some.items()} for part, some in found.causes.items()
            },
        },
    )


def _setting(found: Measured) -> dict[str, str]:
    told = {"scale": found.scale}
    for part, runs in found.runs.items():
        for variant, run in runs.items():
            task, steps = run.task, run.train.steps
            frames = steps * task.environments * task.unroll
            image = f", maps of {run.model.image[0]} x {run.model.image[1]}" if run.model.core == "attention" else ""
            told[f"{part}, {variant}"] = (
                f"{steps} steps of {task.environments} x {task.unroll} frames, {frames / 1e6:.3g} M in all{image}"
            )
    return told


# Tables ------------------------------------------------------------------------------------------------------------


def _learning(found: Measured) -> Table:
    rows = []
    for part, runs in found.runs.items():
        for variant, run in runs.items():
            cost, some = budget(run.model), found.of(part, variant)
            reached = [each.steps_to(REACHED * CATCH_BEST) for each in some] if part == "catch" else []
            rows.append(
                (
                    f"{part}, {variant}",
                    f"{cost.parameters:,}",
                    f"{cost.flops_per_frame / 1e6:.1f}",
                    f"{mean(each.ret for each in some):.3g}" if some else "-",
                    ", ".join(f"{each.ret:.3g}" for each in some) or "-",
                    ", ".join("never" if steps is None else f"{steps / 1e3:,.0f} k" for steps in reached) or "-",
                    f"{mean(each.frames_per_second for each in some):,.0f}" if some else "-",
                )
            )
    return Table(
        title="Learning",
        headings=("", "parameters", "MFLOP a frame", "return", "by seed", "frames to 90 %", "frames a second"),
        rows=rows,
        note=f"Frames are steps of an environment. {PONG_SPEED} ran for its speed alone; its return says nothing.",
    )


def _near(found: Measured) -> Table:
    rows = [
        (
            f"{part}, seed {seed}",
            str(near.radius),
            f"{near.mass:.3f}",
            f"{near.uniform:.3f}",
            f"{near.ratio:.2f}",
            f"{1 / near.uniform:.1f}",
        )
        for part, some in found.causes.items()
        for seed, each in some.items()
        for near in each.near
    ]
    return Table(
        title="Attention near ball and paddle",
        headings=("agent", "cells around", "share of attention", "of a uniform map", "ratio", "most that is possible"),
        rows=rows,
    )


def _interventions(found: Measured) -> Table:
    rows = [
        (
            f"{part}, seed {seed}",
            f"{each.attended_kl:.3g}",
            f"{each.other_kl:.3g}",
            f"{each.risen:.0%} of {each.insertions}",
            f"{each.rise:.2f}",
            f"{each.insertion_kl:.3g}",
            f"{each.correlation:.2f}",
            f"{each.attention_entropy:.2f}, {each.saliency_entropy:.2f}",
        )
        for part, some in found.causes.items()
        for seed, each in some.items()
    ]
    return Table(
        title="Frames changed",
        headings=(
            "agent",
            "KL, attended covered",
            "KL, other covered",
            "insertions that drew attention",
            "times as much (median)",
            "KL, inserted",
            "correlation with saliency",
            "entropy of attention, of saliency",
        ),
        rows=rows,
        note=f"A region of 1/{COVERED} of the cells is covered with the frame's usual colour. A second ball stays for "
        f"{FOLLOWING} steps at a free place.",
    )


def _curves(found: Measured, part: str) -> LineChart:
    lines = [
        Line(name=f"{each.variant}, seed {each.seed}", points=each.curve, colour=number, dots=True)
        for number, each in enumerate(found.trained[part])
        if each.variant != PONG_SPEED
    ]
    return LineChart(
        title=f"Return, {part}", x="steps of the environment", y="mean of evaluation episodes", lines=lines
    )
