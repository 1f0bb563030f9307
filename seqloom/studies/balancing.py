"""Does moving a selection bias keep experts evenly loaded, without harm to the loss?

    MaxVio = largest expert load / mean load       1 when even, experts / top-k when one takes all it can

A router learns to prefer the experts it already prefers. Against that stand a bias that moves by the load of each step
and takes no part in the gradient, and a small loss within rows. Four models differ in these two alone.
Paper: Nemotron 3 Nano and Super, load balancing; auxiliary-loss-free balancing, arXiv 2408.15664.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any

from seqloom.core.charts import Line, LineChart
from seqloom.core.config import config
from seqloom.studies.paired import HEADINGS, Paired, PairedOptions, Scale, text_run, train_paired
from seqloom.studies.study import Claim, Findings, Table
from seqloom.studies.trial import Trial
from seqloom.systems.hybrid_lm.config import AttentionConfig, HybridConfig, MambaConfig, MoeConfig, TextTaskConfig
from seqloom.train.observer import Observer

NOTHING, LOSS, BIAS, BOTH = "nothing", "loss", "bias", "bias_and_loss"
FAR, EVEN, SAME, MARGIN = 1.5, 2.0, 1.1, 0.01
"""Limits of the claims: times above, what counts as even, what as the same, and how much worse a loss may be."""

FINAL = 0.1
"""Share of a run, at its end, over which MaxVio is averaged."""

_MAX_VIO = ".mixer.gate.max_vio"


@config
class Options(PairedOptions):
    """Train a mixture of experts with and without each of the two ways to balance it.

    Stopped or out of time, it goes on where it was when started again.

    Example: seqloom study balancing --steps 400
    """


def study(options: Options, folder: Path, watch: Observer) -> Findings:
    """Train what is missing, and judge all that is there.

    Raises:
        ConfigError: nothing could be trained in the time given.
        Interrupted: finished runs are stored, and the same command goes on.
    """
    return findings(train_paired(SCALES[options.scale], options, folder, watch, loads))


def loads(record: dict[str, Any]) -> dict[str, float]:
    """MaxVio of every expert layer in a record of the monitor, by the layer's name."""
    found = {name: value for name, value in record.items() if name.endswith(_MAX_VIO)}
    return {name.removesuffix(_MAX_VIO).removeprefix("backbone."): value for name, value in found.items()}


def findings(found: Paired) -> Findings:
    """What the runs say, however many there are."""
    return Findings(
        title="MaxVio with and without balancing",
        source="Nemotron 3 Nano and Super; auxiliary-loss-free balancing, arXiv 2408.15664",
        setting=found.settings() | _experts(found),
        tables=[_violations(found), _layers(found), _quality(found)],
        claims=[_needed(found), _even(found), _both(found), _harmless(found)],
        remarks=[
            *found.remarks(),
            "The bias moves ten times as fast as the published one, as a run here is thousands of times shorter.",
        ],
        charts=[_curve(found), found.curves()],
        data={"runs": found.data(), "max_vio": {variant: final(found, variant) for variant in found.runs}},
    )


def final(found: Paired, variant: str) -> dict[str, float]:
    """MaxVio of each layer at the end of training, mean over seeds; empty without a finished run."""
    ends = [_end(trial) for trial in found.trials(variant).values() if trial.watched]
    return {layer: mean(end[layer] for end in ends) for layer in ends[0]} if ends else {}


def _end(trial: Trial) -> dict[str, float]:
    looks: Sequence[dict[str, float]] = trial.watched[-max(1, round(FINAL * len(trial.watched))) :]
    return {layer: mean(look[layer] for look in looks) for layer in looks[0] if layer != "step"}


def _worst(found: Paired, variant: str) -> float | None:
    return max(final(found, variant).values(), default=None)


def _experts(found: Paired) -> dict[str, str]:
    moe = found.runs[BOTH].model.moe
    assert moe is not None
    return {
        "experts": f"{moe.top_k} of {moe.experts}, so that MaxVio is at most {moe.experts / moe.top_k:g}",
        "bias": f"moves by {moe.bias_rate:g} a step (paper: 0.001)",
        "balance loss": f"weight {moe.balance_weight:g} (paper: 0.0001)",
    }


def _violations(found: Paired) -> Table:
    def row(variant: str) -> tuple[str, ...]:
        by_layer = final(found, variant)
        if not by_layer:
            return variant, _paper(variant), "-", "-"
        return variant, _paper(variant), f"{max(by_layer.values()):.2f}", f"{mean(by_layer.values()):.2f}"

    return Table(
        title="MaxVio at the end of training",
        headings=("balanced by", "paper", "worst layer here", "mean of layers here"),
        rows=[row(variant) for variant in found.runs],
    )


def _paper(variant: str) -> str:
    return "1.3 (Nano), 2 (Super)" if variant == BOTH else "no figure"


def _layers(found: Paired) -> Table:
    layers = list(dict.fromkeys(layer for variant in found.runs for layer in final(found, variant)))
    rows = [(v, *(f"{final(found, v)[layer]:.2f}" for layer in layers)) for v in found.runs if final(found, v)]
    return Table(title="MaxVio by layer", headings=("balanced by", *layers), rows=rows)


def _quality(found: Paired) -> Table:
    return Table(title="Quality", headings=HEADINGS, rows=[found.row(variant) for variant in found.runs])


def _needed(found: Paired) -> Claim:
    without, bias = _worst(found, NOTHING), _worst(found, BIAS)
    known = without is not None and bias is not None
    return Claim(
        name="needed",
        says=f"Without balancing MaxVio ends at least {FAR:g} times as high as with the bias.",
        paper="far above",
        here=f"{without:.2f} to {bias:.2f}" if known else "needs a run without and one with the bias",
        holds=without >= FAR * bias if without is not None and bias is not None else None,
    )


def _even(found: Paired) -> Claim:
    both = _worst(found, BOTH)
    return Claim(
        name="even",
        says=f"With bias and loss MaxVio of the worst layer ends at {EVEN:g} or below.",
        paper="1.3 (Nano), 2 (Super)",
        here="needs a run with both" if both is None else f"{both:.2f}",
        holds=None if both is None else both <= EVEN,
    )


def _both(found: Paired) -> Claim:
    bias, both = _worst(found, BIAS), _worst(found, BOTH)
    known = bias is not None and both is not None
    return Claim(
        name="loss beside bias",
        says="The small loss beside the bias leaves MaxVio the same or lowers it.",
        paper="same or better",
        here=f"{both:.2f} to {bias:.2f} with the bias alone"
        if known
        else "needs a run with the bias and one with both",
        holds=both <= SAME * bias if bias is not None and both is not None else None,
    )


def _harmless(found: Paired) -> Claim:
    gap = found.difference(BOTH, NOTHING)
    return Claim(
        name="quality",
        says=f"Balancing costs at most {MARGIN:.0%} of bits per byte.",
        paper="loss not worse",
        here="needs a run without and one with both" if gap is None else gap.beside(MARGIN),
        holds=None if gap is None else gap.at_most(MARGIN),
    )


def _curve(found: Paired) -> LineChart:
    lines = [
        Line(
            name=variant,
            points=[
                (look["step"], max(value for name, value in look.items() if name != "step")) for look in trial.watched
            ],
            colour=number,
        )
        for number, variant in enumerate(found.runs)
        for seed, trial in found.trials(variant).items()
        if seed == 0
    ]
    return LineChart(title="MaxVio of the worst layer", x="step", y="largest load over mean load", lines=lines)


# Scales ------------------------------------------------------------------------------------------------------------


def variants(model: HybridConfig) -> dict[str, HybridConfig]:
    assert model.moe is not None
    rate, weight = model.moe.bias_rate, model.moe.balance_weight
    ways = {NOTHING: (0.0, 0.0), LOSS: (0.0, weight), BIAS: (rate, 0.0), BOTH: (rate, weight)}
    return {
        way: replace(model, moe=replace(model.moe, bias_rate=rate, balance_weight=weight))
        for way, (rate, weight) in ways.items()
    }


_LAPTOP = HybridConfig(
    pattern="MEM*EME",
    vocab_size=4096,
    width=128,
    mamba=MambaConfig(heads=8, head_width=32, state_width=32, groups=2, chunk=64),
    attention=AttentionConfig(heads=4, kv_heads=2, head_width=32),
    moe=MoeConfig(
        experts=32, top_k=4, expert_width=128, shared_width=256, latent_width=64, routed_scaling=2.5, bias_rate=0.01
    ),
    init_std=0.02,
)
_SMALL = replace(
    _LAPTOP,
    pattern="MEMEM*EMEME",
    vocab_size=8192,
    width=256,
    mamba=MambaConfig(heads=16, head_width=32, state_width=64, groups=4, chunk=64),
    attention=AttentionConfig(heads=4, kv_heads=2, head_width=64),
    moe=MoeConfig(
        experts=64, top_k=6, expert_width=192, shared_width=512, latent_width=64, routed_scaling=2.5, bias_rate=0.01
    ),
)


def _scale(model: HybridConfig, seeds: int, **shape: Any) -> Scale:
    return Scale(models=variants(model), run=text_run("balancing", TextTaskConfig, model, **shape), seeds=seeds)


SCALES = {
    "laptop": _scale(_LAPTOP, seeds=1, sequence_length=256, batch_rows=8, steps=200),
    "small": _scale(_SMALL, seeds=2, sequence_length=512, batch_rows=16, steps=600),
}
