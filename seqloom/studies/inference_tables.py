"""What a study of inference says of its measurements: tables, claims, charts."""

from collections.abc import Sequence
from dataclasses import dataclass

from seqloom.core.charts import Line, LineChart
from seqloom.core.readable import short
from seqloom.studies.cache_budget import Load, Served
from seqloom.studies.decoding import HYBRID, TRANSFORMER, Compared
from seqloom.studies.study import Claim, Table

MODELS = (HYBRID, TRANSFORMER)
LONG = 65536
NEAR = 0.3
"""By how much, as a share, a measured ratio may miss the predicted one where keys and values weigh most."""
WRITING, READING = "long answers", "long prompts"


@dataclass(frozen=True, kw_only=True)
class Measured(Compared):
    """All that was found.

    Attributes:
        crossover: tokens after which both models remember as much.
    """

    served: Sequence[Served]
    machine: str
    crossover: int

    def under(self, model: str, load: str) -> Served:
        return next(served for served in self.served if (served.model, served.load) == (model, load))

    def throughput_gain(self, load: str) -> float:
        return self.under(HYBRID, load).tokens_per_second / self.under(TRANSFORMER, load).tokens_per_second


# Tables ------------------------------------------------------------------------------------------------------------


def times(found: Measured) -> Table:
    rows = []
    for context in found.contexts:
        times = (f"{1e3 * found.at(name, context).seconds:.2f}" for name in MODELS)
        rows.append((f"{context:,}", *times, f"{found.gain(context):.2f}", f"{found.predicted_gain(context):.2f}"))
    return Table(
        title="Milliseconds of a token by context, one row",
        headings=("context", *MODELS, "transformer over hybrid", "predicted from bytes"),
        rows=rows,
    )


def memory(found: Measured) -> Table:
    def cells(context: int) -> list[str]:
        points = [found.at(name, context) for name in MODELS]
        return [f"{point.state_bytes:,} / {point.predicted_state_bytes:,}" for point in points]

    return Table(
        title="Bytes remembered of a sequence: here / formula",
        headings=("context", *MODELS),
        rows=[(f"{context:,}", *cells(context)) for context in found.contexts],
        note=f"Both remember as much after {found.crossover:,} tokens: the state over the difference of kv.",
    )


def capacity(found: Measured, loads: Sequence[Load]) -> Table:
    rows = [
        (
            f"{load.name}: {load.prompt} in, {load.answer} out",
            name,
            str(found.under(name, load.name).rows),
            f"{found.under(name, load.name).tokens_per_second:,.0f}",
            f"{found.under(name, load.name).seconds:.1f}",
        )
        for load in loads
        for name in MODELS
    ]
    return Table(
        title="One budget of memory", headings=("load", "model", "rows", "tokens/s written", "seconds"), rows=rows
    )


# Claims ------------------------------------------------------------------------------------------------------------


def grows(found: Measured) -> Claim:
    gains = [found.gain(context) for context in found.contexts]
    here = ", ".join(f"{gain:.2f} at {context:,}" for gain, context in zip(gains, found.contexts, strict=True))
    return Claim(
        name="speed",
        says="The hybrid's lead in decoding grows with context and is at least threefold at 64k tokens.",
        paper="up to 3 times, 65,536 tokens in and 1,024 out (H100, batches)",
        here=here,
        holds=gains == sorted(gains) and gains[-1] >= 3 if found.contexts[-1] >= LONG else None,
    )


def predicted(found: Measured) -> Claim:
    last = found.contexts[-1]
    here, predicted = found.gain(last), found.predicted_gain(last)
    return Claim(
        name="bytes",
        says=f"Bytes of memory traffic alone predict the ratio at the longest context within {NEAR:.0%}.",
        paper="(W + b T kv) / (W + b (T kv' + 2 state)), from the formulas",
        here=f"{short(here)} at {last:,}, predicted {short(predicted)}",
        holds=abs(here / predicted - 1) <= NEAR,
    )


def exact(found: Measured) -> Claim:
    off = [point for point in found.points if point.state_bytes != point.predicted_state_bytes]
    return Claim(
        name="memory",
        says="What is remembered of a sequence is what the formula says: keys and values by token, states once.",
        paper="formulas of the reports' state sizes",
        here="equal to the byte" if not off else f"{len(off)} of {len(found.points)} differ",
        holds=not off,
    )


def batch(found: Measured) -> Claim:
    rows = [found.under(name, WRITING).rows for name in MODELS]
    gain = found.throughput_gain(WRITING)
    return Claim(
        name="throughput",
        says="From one budget of memory the hybrid writes at least three times as much, 1 token in for 2 out.",
        paper="6.3 times Qwen3-8B, 8k in and 16k out (Nano 2 9B, A10G)",
        here=f"{short(gain)} times, with {rows[0]} rows against {rows[1]}",
        holds=gain >= 3,
    )


def reading(found: Measured) -> Claim:
    gains = {load: found.throughput_gain(load) for load in (WRITING, READING)}
    return Claim(
        name="long prompts",
        says="Where much is read and little written, the gain is smaller.",
        paper="3.3 times the peers at 8k in and 16k out, about 1 at 50k in and 2k out (3 Nano, 3 Ultra)",
        here=", ".join(f"{short(gain)} times for {load}" for load, gain in gains.items()),
        holds=gains[READING] < gains[WRITING],
    )


def remarks(found: Measured) -> list[str]:
    return [
        "Weights are random and keys, values and states at long contexts were filled at random: what they hold changes "
        "no time and no size.",
        "On a processor a larger batch soon costs as much more arithmetic as it saves reading of weights, so the "
        "throughput of many rows grows less than their number; on an accelerator it grows with it for longer.",
        f"No model here encodes positions. Measured on {found.machine}.",
    ]


def charts(found: Measured) -> list[LineChart]:
    def by_context(title: str, y: str, value: str, factor: float) -> LineChart:
        lines = [
            Line(
                name=name,
                points=[(c, factor * float(getattr(found.at(name, c), value))) for c in found.contexts],
                colour=number,
                dots=True,
            )
            for number, name in enumerate(MODELS)
        ]
        return LineChart(title=title, x="tokens of context", y=y, lines=lines, log_x=True, log_y=True)

    gains = [
        Line(name="here", points=[(c, found.gain(c)) for c in found.contexts], dots=True),
        Line(name="predicted", points=[(c, found.predicted_gain(c)) for c in found.contexts], colour=1, dots=True),
    ]
    return [
        by_context("Time of a token", "milliseconds", "seconds", 1e3),
        by_context("Memory of a sequence", "MiB", "state_bytes", 2**-20),
        LineChart(title="Transformer over hybrid", x="tokens of context", y="times as long", lines=gains, log_x=True),
    ]
