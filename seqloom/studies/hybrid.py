"""Is a hybrid as good as a Transformer of its size, and what does it save when the context grows?

Three models of equal size learn the same text: the hybrid, one of attention and MLP in turn, and the hybrid with a
Mamba layer in place of every attention layer. They are compared by bits per byte, by what they can repeat after having
read it once (`recall.py`), and by time and memory of a token at contexts of 1k to 64k (`decoding.py`).
Paper: Nemotron-H (arXiv 2504.03624), and "An Empirical Study of Mamba-based Language Models" (arXiv 2406.07887).
"""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from seqloom.core.charts import Line, LineChart
from seqloom.core.config import Ge, config
from seqloom.core.readable import short
from seqloom.studies.decoding import HYBRID, TRANSFORMER, Compared, measure
from seqloom.studies.paired import HEADINGS, Paired, PairedOptions, Scale, text_run, train_paired
from seqloom.studies.recall import AGAIN, BEFORE, SAVED, ProbedTaskConfig
from seqloom.studies.study import Claim, Findings, Table
from seqloom.studies.twins import attention_twin, mamba_twin
from seqloom.systems.hybrid_lm.config import AttentionConfig, HybridConfig, MambaConfig, MlpConfig
from seqloom.train.observer import Observer

MAMBA = "mamba"
REPEATED = 0.02
"""Share of its surprise that the best model must save at a second reading, before the others can be held against it."""
MARGIN = 0.01
"""By how much a hybrid's bits per byte may be above a Transformer's and still count as on par."""


@config
class Options(PairedOptions):
    """Train a hybrid, a Transformer and an attention-free model of equal size, and time them at growing contexts.

    Stopped or out of time, it goes on where it was when started again.

    Example: seqloom study hybrid --data my_texts/ --seeds 1
    """

    contexts: tuple[Annotated[int, Ge(1)], ...] = (1024, 4096, 16384, 65536)
    """Tokens that came before the one that is timed."""


@dataclass(frozen=True, kw_only=True)
class Measured(Compared):
    """All that was found."""

    trained: Paired
    machine: str


def study(options: Options, folder: Path, watch: Observer) -> Findings:
    """Train and time what is missing, and judge all that is there.

    Raises:
        ConfigError: nothing could be trained in the time given.
        Interrupted: finished runs are stored, and the same command goes on.
    """
    scale = SCALES[options.scale]
    trained = train_paired(scale, options, folder, watch, lambda record: {})
    contexts = sorted(set(options.contexts))
    points, machine = measure(scale.models, contexts, folder / f"decoding-{options.scale}.json")
    return findings(Measured(trained=trained, points=points, machine=machine))


def findings(found: Measured) -> Findings:
    """What the runs and the times say, however many there are."""
    return Findings(
        title="A hybrid beside a Transformer and an attention-free model of its size",
        source="Nemotron-H, arXiv 2504.03624; An Empirical Study of Mamba-based Language Models, arXiv 2406.07887",
        setting=found.trained.settings() | {"times measured in": f"fp32 on {found.machine}, one row"},
        tables=[_quality(found), _recall(found), _times(found), _memory(found)],
        claims=[_on_par(found), _restored(found), _grows(found), _exact(found)],
        remarks=_remarks(found),
        charts=_charts(found),
        data={"runs": found.trained.data(), "decoding": [asdict(point) for point in found.points]},
    )


# Tables ------------------------------------------------------------------------------------------------------------


def _quality(found: Measured) -> Table:
    return Table(
        title="Quality at equal size",
        headings=HEADINGS,
        rows=[found.trained.row(variant) for variant in found.trained.runs],
    )


def _recall(found: Measured) -> Table:
    def percent(variant: str, measure: str) -> str:
        value = found.trained.mean(variant, measure)
        return "-" if value is None else f"{value:.1%}"

    return Table(
        title="A passage read for the second time",
        headings=("variant", "surprise saved", "right tokens", "right at first reading"),
        rows=[(variant, *(percent(variant, m) for m in (SAVED, AGAIN, BEFORE))) for variant in found.trained.runs],
        note="Passages of held-out text, half as long as a training row; means over seeds.",
    )


def _times(found: Measured) -> Table:
    def row(context: int) -> tuple[str, ...]:
        times = (f"{1000 * found.at(variant, context).seconds:.2f}" for variant in found.trained.runs)
        return f"{context:,}", *times, f"{found.gain(context):.2f}", f"{found.predicted_gain(context):.2f}"

    return Table(
        title="Milliseconds of a token by context",
        headings=("context", *found.trained.runs, "transformer over hybrid", "predicted from bytes"),
        rows=[row(context) for context in found.contexts],
    )


def _memory(found: Measured) -> Table:
    def row(context: int) -> tuple[str, ...]:
        points = [found.at(variant, context) for variant in found.trained.runs]
        return f"{context:,}", *(f"{p.state_bytes:,} / {p.predicted_state_bytes:,}" for p in points)

    return Table(
        title="Bytes remembered of a sequence: here / formula",
        headings=("context", *found.trained.runs),
        rows=[row(context) for context in found.contexts],
    )


# Claims ------------------------------------------------------------------------------------------------------------


def _on_par(found: Measured) -> Claim:
    gap = found.trained.difference(HYBRID, TRANSFORMER)
    return Claim(
        name="quality",
        says=f"The hybrid's bits per byte are at most {MARGIN:.0%} above those of a Transformer of its size.",
        paper="on par or better (8B and 56B, downstream tasks)",
        here="needs both models of one seed" if gap is None else gap.beside(MARGIN),
        holds=None if gap is None else gap.at_most(MARGIN),
    )


def _restored(found: Measured) -> Claim:
    saved = {variant: found.trained.mean(variant, SAVED) for variant in (HYBRID, TRANSFORMER, MAMBA)}
    known = {variant: value for variant, value in saved.items() if value is not None}
    here = ", ".join(f"{variant} saves {value:.1%}" for variant, value in known.items()) or "needs trained models"
    holds = None
    if len(known) == len(saved) and max(known.values()) >= REPEATED:
        holds = known[HYBRID] > known[MAMBA] and known[TRANSFORMER] > known[MAMBA]
    elif known:
        here += f"; none repeats enough to tell ({REPEATED:.0%})"
    return Claim(
        name="recall",
        says="Without attention a model repeats less of what it read; few attention layers bring that back.",
        paper="pure Mamba falls behind in copying and recall, hybrids do not",
        here=here,
        holds=holds,
    )


def _grows(found: Measured) -> Claim:
    gains = [found.gain(context) for context in found.contexts]
    here = ", ".join(f"{gain:.2f} at {context:,}" for gain, context in zip(gains, found.contexts, strict=True))
    return Claim(
        name="speed",
        says="The hybrid's lead in decoding grows with context, and is at least twofold at 64k tokens.",
        paper="up to 3 times, 65,536 tokens in and 1,024 out (H100, batches)",
        here=here,
        holds=gains == sorted(gains) and gains[-1] >= 2 if found.contexts[-1] >= 65536 else None,
    )


def _exact(found: Measured) -> Claim:
    off = [point for point in found.points if point.state_bytes != point.predicted_state_bytes]
    return Claim(
        name="memory",
        says="What is remembered of a sequence is what the formula says: keys and values by token, states once.",
        paper="formulas of the reports' state sizes",
        here="equal to the byte" if not off else f"{len(off)} of {len(found.points)} differ",
        holds=not off,
    )


def _remarks(found: Measured) -> list[str]:
    last = found.contexts[-1]
    here, predicted = found.gain(last), found.predicted_gain(last)
    return [
        *found.trained.remarks(),
        "No model here encodes positions, as in the paper's hybrid; the Transformer then knows order from the causal "
        "mask alone, unlike the paper's, which has rotary embeddings.",
        f"At {last:,} tokens the Transformer takes {short(here)} times as long as the hybrid; bytes alone predict "
        f"{short(predicted)}. They leave out arithmetic and the cost of calls, which weigh most in small models.",
        "Keys, values and states were filled at random for the times; nothing was read to get there.",
    ]


def _charts(found: Measured) -> list[LineChart]:
    def by_context(title: str, y: str, value: str, factor: float) -> LineChart:
        lines = [
            Line(
                name=variant,
                points=[(c, factor * float(getattr(found.at(variant, c), value))) for c in found.contexts],
                colour=number,
                dots=True,
            )
            for number, variant in enumerate(found.trained.runs)
        ]
        return LineChart(title=title, x="tokens of context", y=y, lines=lines, log_x=True, log_y=True)

    gains = [
        Line(name="here", points=[(c, found.gain(c)) for c in found.contexts], dots=True),
        Line(name="predicted", points=[(c, found.predicted_gain(c)) for c in found.contexts], colour=1, dots=True),
    ]
    return [
        found.trained.curves(),
        by_context("Time of a token", "milliseconds", "seconds", 1e3),
        by_context("Memory of a sequence", "MiB", "state_bytes", 2**-20),
        LineChart(
            title="Transformer over hybrid",
            x="tokens of context",
            y="times as long",
            lines=gains,
            log_x=True,
            log_y=True,
        ),
    ]


# Scales ------------------------------------------------------------------------------------------------------------


def variants(model: HybridConfig) -> dict[str, HybridConfig]:
    return {HYBRID: model, TRANSFORMER: attention_twin(model), MAMBA: mamba_twin(model)}


_LAPTOP = HybridConfig(
    pattern="M-M*-M-M-",
    vocab_size=4096,
    width=128,
    mamba=MambaConfig(heads=8, head_width=32, state_width=32, groups=2, chunk=64),
    attention=AttentionConfig(heads=4, kv_heads=2, head_width=32),
    mlp=MlpConfig(hidden_width=512),
    init_std=0.02,
)
_SMALL = replace(
    _LAPTOP,
    pattern="M-M-M*-M-M-M*-",
    vocab_size=8192,
    width=256,
    mamba=MambaConfig(heads=16, head_width=32, state_width=64, groups=4, chunk=64),
    attention=AttentionConfig(heads=4, kv_heads=2, head_width=64),
    mlp=MlpConfig(hidden_width=1024),
)


def _scale(model: HybridConfig, seeds: int, **shape: Any) -> Scale:
    return Scale(models=variants(model), run=text_run("hybrid", ProbedTaskConfig, model, **shape), seeds=seeds)


SCALES = {
    "laptop": _scale(_LAPTOP, seeds=2, sequence_length=256, batch_rows=8, steps=200),
    "small": _scale(_SMALL, seeds=3, sequence_length=512, batch_rows=16, steps=600),
}
