"""Does serving whatever waits as one batch keep latencies low where serving streams one by one no longer does?

Real-time streams begin as a Poisson process, N at a time on average; latency is from the end of a user's sound to the
final text. One by one, a processor can follow c streams; beyond, the queue grows without end. A batch costs less than
its streams one by one, so the same processor follows more of them, and none waits for a batch to fill.
Paper: Deep Speech 2, section 7: with 10 streams on a small GPU a median of 44 ms and a 98th percentile of 70 ms.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from seqloom.core.charts import Line, LineChart
from seqloom.core.config import Ge, Gt, MinLen, config, to_data
from seqloom.core.errors import ConfigError
from seqloom.studies.measured import measured
from seqloom.studies.speech_runs import SOURCE
from seqloom.studies.study import Claim, Findings, Table
from seqloom.systems.deep_speech2.config import DeepSpeech2Config, RecurrentConfig
from seqloom.systems.deep_speech2.recipes import an4_streaming
from seqloom.train.observer import Observer

BATCHES, ONE_BY_ONE = "batches", "one by one"
LATENCY, THROUGHPUT = 0.5, 2.0


@config
class Options:
    """Serve simulated streams in batches and one by one.

    Example: seqloom study batch_dispatch --model runs/live --streams 1 4 16 64
    """

    scale: Literal["laptop", "gpu"] = "laptop"
    """laptop: the shapes of deep_speech2/an4_streaming; gpu: five forward GRUs of 1280."""
    model: str | None = None
    """A run folder whose model streams, in place of one with random weights, which takes the same time."""
    streams: Annotated[tuple[Annotated[int, Ge(1)], ...], MinLen(1)] = (1, 2, 4, 8, 16, 32)
    """Numbers of streams at a time, on average."""
    seconds: Annotated[float, Gt(0)] = 2.5
    """Length of what each says."""
    max_batch: Annotated[int, Ge(2)] = 16
    """Most streams in a batch."""


@dataclass(frozen=True, kw_only=True)
class Point:
    """What users met at one number of streams, under one way to serve.

    Attributes:
        median, p98: latency in seconds.
        speed: seconds of sound heard in a second of work.
        batch: streams in a batch, on average.
    """

    streams: int
    policy: str
    median: float
    p98: float
    speed: float
    batch: float

    @property
    def load(self) -> float:
        """Work that comes in a second, in seconds; from 1 on the queue grows without end."""
        return self.streams / self.speed


def study(options: Options, folder: Path, watch: Observer) -> Findings:
    """Measure what is missing, and judge.

    Raises:
        ConfigError: the model named cannot stream.
        CheckpointError: it cannot be read, or what was measured cannot be written.
    """
    points, machines, opened = list[Point](), set[str](), dict[str, Any]()
    plan = [(count, policy) for count in sorted(set(options.streams)) for policy in (BATCHES, ONE_BY_ONE)]
    for number, (count, policy) in enumerate(plan):
        watch.on_prepare(f"serving {count} streams, {policy}", number / len(plan))
        rows = options.max_batch if policy == BATCHES else 1
        settings = {
            "model": options.model or to_data(shapes(options.scale)), "streams": count, "seconds": options.seconds,
            "max_batch": rows,
        }  # fmt: skip
        path = folder / "points" / f"{options.scale}-{count}-{rows}.json"
        found, machine = measured(path, settings, _serving(options, count, rows, opened))
        points.append(Point(streams=count, policy=policy, **found))
        machines.add(machine)
    return findings(points, options, ", ".join(sorted(machines)))


def shapes(scale: str) -> DeepSpeech2Config:
    """The recogniser of a scale."""
    from dataclasses import replace

    model = an4_streaming().model
    wide = RecurrentConfig(kind="gru", layers=5, width=1280, directions="forward")
    return model if scale == "laptop" else replace(model, recurrent=wide, row_context=19)


def _serving(options: Options, count: int, rows: int, opened: dict[str, Any]) -> Callable[[], dict[str, float]]:
    def serve() -> dict[str, float]:
        from seqloom.systems.deep_speech2.simulate import simulate

        if not opened:
            opened["model"] = _open(options)
            simulate(opened["model"], 2, utterances=4, seconds=1.0, max_batch=options.max_batch)  # to warm up
        said = max(40, 4 * count)
        told = simulate(opened["model"], count, utterances=said, seconds=options.seconds, max_batch=rows).statistics
        return {
            "median": float(f"{told.latency(50.0):.4g}"),
            "p98": float(f"{told.latency(98.0):.4g}"),
            "speed": float(f"{told.audio_seconds / told.busy_seconds:.4g}"),
            "batch": round(told.mean_batch, 2),
        }

    return serve


def _open(options: Options) -> Any:
    import torch

    from seqloom.core.devices import pick_device
    from seqloom.core.rooms import load
    from seqloom.systems.deep_speech2.alphabet import ENGLISH, Alphabet
    from seqloom.systems.deep_speech2.model import DeepSpeech2
    from seqloom.systems.deep_speech2.stream import StreamingModel

    if options.model is not None:
        model = load(options.model)
        if not isinstance(model, DeepSpeech2):
            raise ConfigError(f"--model: {options.model} holds no recogniser of deep_speech2")
    else:
        torch.manual_seed(0)
        model = shapes(options.scale).build()
        model.alphabet = Alphabet(ENGLISH)
    return StreamingModel(model.to(pick_device("auto")))


def findings(points: list[Point], options: Options, machine: str) -> Findings:
    """What the measurements say."""
    by = {(point.streams, point.policy): point for point in points}
    counts = sorted({point.streams for point in points})
    rows = [
        (
            str(point.streams), point.policy, "44 / 70 at 10 streams" if point.policy == BATCHES else "-",
            f"{1000 * point.median:.0f} / {1000 * point.p98:.0f}", f"{point.batch:.1f}", f"{point.speed:.1f}",
            f"{point.load:.0%}",
        )
        for point in points
    ]  # fmt: skip
    return Findings(
        title="Batch Dispatch beside one by one",
        source=f"{SOURCE}, section 7",
        setting={
            "scale": options.scale,
            "model": options.model or "random weights",
            "each stream": f"{options.seconds:g} s of sound, in pieces of 0.1 s at the speed of speech",
            "computed on": machine,
        },
        tables=[
            Table(
                title="Latency by load",
                headings=("streams", "served", "paper, ms", "median / p98, ms", "batch", "times real time", "load"),
                rows=rows,
                note="Load is the work that comes in a second; from 100 % on, waiting times grow as long as it lasts.",
            )
        ],
        claims=[_latency(by, counts), _throughput(points), _gentle(by, counts)],
        remarks=[
            "Arrivals, pieces and queues are simulated on a clock of their own; the time of every batch is real.",
            "Where load is over 100 %, latencies depend on how long it was measured.",
        ],
        charts=[
            LineChart(
                title="98th percentile of latency",
                x="streams",
                y="seconds",
                lines=[
                    Line(name=policy, points=[(float(n), by[n, policy].p98) for n in counts], colour=number)
                    for number, policy in enumerate((BATCHES, ONE_BY_ONE))
                ],
            )
        ],
        data={"points": [to_plain(point) for point in points]},
    )


def to_plain(point: Point) -> dict[str, Any]:
    """Plain data."""
    return {**vars(point), "load": round(point.load, 4)}


def _saturated(by: dict[tuple[int, str], Point], counts: list[int]) -> int | None:
    """The first number of streams that cannot be followed one by one."""
    return next((count for count in counts if by[count, ONE_BY_ONE].load >= 1), None)


def _latency(by: dict[tuple[int, str], Point], counts: list[int]) -> Claim:
    count = _saturated(by, counts)
    ratio = None if count is None else by[count, BATCHES].p98 / by[count, ONE_BY_ONE].p98
    return Claim(
        name="latency",
        says=f"Where streams can no longer be followed one by one, batches have at most {LATENCY:g} of their 98th "
        "percentile.",
        paper="told in words: latency grows slowly with load",
        here=f"{counts[-1]} streams could still be followed one by one; ask for more (--streams)"
        if ratio is None
        else f"{ratio:.2f} at {count} streams",
        holds=None if ratio is None else ratio <= LATENCY,
    )


def _throughput(points: list[Point]) -> Claim:
    best = {policy: max(p.speed for p in points if p.policy == policy) for policy in (BATCHES, ONE_BY_ONE)}
    ratio = best[BATCHES] / best[ONE_BY_ONE]
    return Claim(
        name="throughput",
        says=f"Batches follow at least {THROUGHPUT:g} times as many streams.",
        paper="no figures",
        here=f"{ratio:.2f} times: {best[BATCHES]:.1f} and {best[ONE_BY_ONE]:.1f} streams",
        holds=ratio >= THROUGHPUT,
    )


def _gentle(by: dict[tuple[int, str], Point], counts: list[int]) -> Claim:
    """A lone stream must not pay for the batches of others."""
    ratio = by[counts[0], BATCHES].p98 / by[counts[0], ONE_BY_ONE].p98
    return Claim(
        name="a lone stream",
        says=f"With {counts[0]} streams, batches take at most 1.25 times the 98th percentile of one by one.",
        paper="told in words: batches are never waited for",
        here=f"{ratio:.2f} times",
        holds=ratio <= 1.25,
    )
