"""Are more, narrower experts worth more than fewer wide ones at the same cost, and does looking ahead help?

LatentMoE runs its routed experts in a latent width ℓ = width / r and has r times as many of them. Parameters stay the
same; so many are chosen for each token that its cost stays the same as well:

    K' = ⌊(K m d − d ℓ) / (m ℓ)⌋          d width, m expert width, K experts of the plain model a token visits

Both are trained with and without multi-token prediction, and compared by the bits per byte of the next token alone.
Paper: LatentMoE (arXiv 2601.18089); Nemotron 3 white paper, tables on LatentMoE and MTP.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from seqloom.core.config import config
from seqloom.studies.paired import HEADINGS, Paired, PairedOptions, Scale, text_run, train_paired
from seqloom.studies.study import Claim, Findings, Table
from seqloom.systems.hybrid_lm.budget import budget
from seqloom.systems.hybrid_lm.config import (
    AttentionConfig,
    HybridConfig,
    MambaConfig,
    MoeConfig,
    MtpConfig,
    TextTaskConfig,
)
from seqloom.train.observer import Observer

PLAIN, LATENT, WITH_MTP = "moe", "latent_moe", "_mtp"
COMPRESSION = 4
"""Width over latent width, as in Nemotron 3 Super and Ultra."""


@config
class Options(PairedOptions):
    """Train MoE and LatentMoE of equal active and total size, each with and without multi-token prediction.

    Stopped or out of time, it goes on where it was when started again.

    Example: seqloom study latent_moe --data my_texts/ --seeds 3
    """


def study(options: Options, folder: Path, watch: Observer) -> Findings:
    """Train what is missing, and judge all that is there.

    Raises:
        ConfigError: nothing could be trained in the time given.
        Interrupted: finished runs are stored, and the same command goes on.
    """
    return findings(train_paired(SCALES[options.scale], options, folder, watch, lambda record: {}))


def findings(found: Paired) -> Findings:
    """What the runs say, however many there are."""
    return Findings(
        title="LatentMoE beside MoE at equal cost, with and without multi-token prediction",
        source="LatentMoE, arXiv 2601.18089; Nemotron 3 white paper",
        setting=found.settings() | _shapes(found),
        tables=[
            Table(
                title="Quality at equal cost", headings=HEADINGS, rows=[found.row(variant) for variant in found.runs]
            ),
            _differences(found),
        ],
        claims=[_equal(found), _latent(found), _ahead(found, PLAIN), _ahead(found, LATENT)],
        remarks=[
            *found.remarks(),
            "A difference counts as shown only where its whole interval lies on one side of zero.",
            "The paper compares downstream accuracy after 1 T tokens at 8 B active parameters.",
        ],
        charts=[found.curves()],
        data={"runs": found.data()},
    )


def _shapes(found: Paired) -> dict[str, str]:
    def told(variant: str) -> str:
        moe = found.runs[variant].model.moe
        assert moe is not None
        width = f" in width {moe.latent_width}" if moe.latent_width else ""
        return f"{moe.top_k} of {moe.experts} experts of {moe.expert_width}{width}, shared {moe.shared_width}"

    return {variant: told(variant) for variant in (PLAIN, LATENT)}


def _differences(found: Paired) -> Table:
    pairs = [
        (LATENT, PLAIN),
        (LATENT + WITH_MTP, PLAIN + WITH_MTP),
        (PLAIN + WITH_MTP, PLAIN),
        (LATENT + WITH_MTP, LATENT),
    ]
    return Table(
        title="Bits per byte, paired by seed",
        headings=("variant", "against", "difference"),
        rows=[(one, other, str(found.difference(one, other) or "-")) for one, other in pairs],
        note="Below zero is better; ± is the 95 % interval of the mean.",
    )


def _equal(found: Paired) -> Claim:
    plain, latent = (budget(found.runs[variant].model) for variant in (PLAIN, LATENT))
    total, active = latent.parameters / plain.parameters - 1, latent.active_with_head / plain.active_with_head - 1
    return Claim(
        name="cost",
        says="Both models have the same total and active size within 2 %.",
        paper="72.8 B to 72.6 B total, 8.02 B to 8.09 B active",
        here=f"total {total:+.1%}, active {active:+.1%}",
        holds=abs(total) <= 0.02 and abs(active) <= 0.02,
    )


def _latent(found: Paired) -> Claim:
    gap = found.difference(LATENT, PLAIN)
    return Claim(
        name="latent",
        says="At equal cost LatentMoE needs fewer bits per byte than MoE.",
        paper="MMLU-Pro 48.30 to 52.87, MMLU 70.10 to 72.11, code 51.95 to 55.14",
        here="needs both models of one seed" if gap is None else str(gap),
        holds=None if gap is None else gap.below,
    )


def _ahead(found: Paired, variant: str) -> Claim:
    gap = found.difference(variant + WITH_MTP, variant)
    return Claim(
        name=f"mtp with {variant}",
        says="Learning to look ahead does not make the next token worse.",
        paper="better: MMLU 70.06 to 71.26, MMLU-Pro 45.05 to 47.84, GSM8K 82.49 to 84.46",
        here="needs both models of one seed" if gap is None else str(gap),
        holds=None if gap is None else not gap.above,
    )


# Scales ------------------------------------------------------------------------------------------------------------


def latent_counterpart(moe: MoeConfig, width: int) -> MoeConfig:
    """LatentMoE of the same size and cost."""
    latent = width // COMPRESSION
    top_k = (moe.top_k * moe.expert_width * width - width * latent) // (moe.expert_width * latent)
    return replace(moe, experts=COMPRESSION * moe.experts, top_k=top_k, latent_width=latent)


def variants(model: HybridConfig) -> Mapping[str, HybridConfig]:
    assert model.moe is not None
    latent = replace(model, moe=latent_counterpart(model.moe, model.width))
    without = {PLAIN: model, LATENT: latent}
    return without | {name + WITH_MTP: replace(each, mtp=MtpConfig(depth=2)) for name, each in without.items()}


_LAPTOP = HybridConfig(
    pattern="MEM*EME",
    vocab_size=4096,
    width=128,
    mamba=MambaConfig(heads=8, head_width=32, state_width=32, groups=2, chunk=64),
    attention=AttentionConfig(heads=4, kv_heads=2, head_width=32),
    moe=MoeConfig(experts=8, top_k=2, expert_width=128, shared_width=256, routed_scaling=2.5, bias_rate=0.01),
    init_std=0.02,
)
_SMALL = replace(
    _LAPTOP,
    pattern="MEMEM*EMEME",
    vocab_size=8192,
    width=256,
    mamba=MambaConfig(heads=16, head_width=32, state_width=64, groups=4, chunk=64),
    attention=AttentionConfig(heads=4, kv_heads=2, head_width=64),
    moe=MoeConfig(experts=8, top_k=2, expert_width=256, shared_width=512, routed_scaling=2.5, bias_rate=0.005),
)


def _scale(model: HybridConfig, seeds: int, **shape: Any) -> Scale:
    return Scale(models=variants(model), run=text_run("latent_moe", TextTaskConfig, model, **shape), seeds=seeds)


SCALES = {
    "laptop": _scale(_LAPTOP, seeds=2, sequence_length=256, batch_rows=8, steps=200),
    "small": _scale(_SMALL, seeds=3, sequence_length=512, batch_rows=16, steps=600),
}
