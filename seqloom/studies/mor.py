"""Mixture of Representations: which share of tensors can be FP8 when each is asked, and what does that cost?

    mor_tensor       each operand of each product: E4M3 where its mean relative error is at most the threshold
    mor_subtensor    the same for blocks of 128 x 128; or per block between E4M3, E5M2 and BF16
    mor_nvfp4        a ladder: NVFP4, else FP8, else BF16

The body of the paper could not be read for this; metric, threshold and partitions are options of the recipes, and the
share is reported for every denominator (`precision_shares.py`).
Paper: MoR, "Mixture of Representations" (arXiv 2512.22804).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Any

from seqloom.core.config import config, to_data
from seqloom.numerics.precision import PrecisionConfig
from seqloom.numerics.recipes import Fp8Options, MorOptions
from seqloom.studies import precision_tables
from seqloom.studies.branching import train_branches, trunk_of
from seqloom.studies.courses import Branched, Plan
from seqloom.studies.measured import measured
from seqloom.studies.paired import shown
from seqloom.studies.precision_looks import Looks, Opened, look_at_branch_point
from seqloom.studies.precision_scales import PrecisionOptions, plan
from seqloom.studies.precision_shares import Use, by_layer, shares, uses
from seqloom.studies.precision_tables import MISSING, beside_null, gap_chart, gap_table
from seqloom.studies.study import Claim, Findings, Table
from seqloom.train.observer import Observer

TENSOR, BLOCKS, THREE_WAY, LADDER = "mor_tensor", "mor_subtensor", "mor_subtensor three-way", "mor_nvfp4"
PLAIN = "fp8 E4M3, no choice"
_TENSOR = PrecisionConfig(activations="bf16", recipe="mor_tensor")
_BLOCKS = PrecisionConfig(activations="bf16", recipe="mor_subtensor")
RECIPES = {
    TENSOR: _TENSOR,
    BLOCKS: _BLOCKS,
    LADDER: PrecisionConfig(activations="bf16", recipe="mor_nvfp4"),
    PLAIN: PrecisionConfig(
        activations="bf16", recipe="fp8_nemotron_h", keep_first=0, keep_last=0, fp8=Fp8Options(gradient="e4m3")
    ),
    THREE_WAY: replace(_BLOCKS, mor=MorOptions(three_way=True)),
}
THRESHOLDS = (0.01, 0.02, 0.03, 0.045, 0.09)
CHOSEN = 0.045


@config
class Options(PrecisionOptions):
    """Train a BF16 model, branch into the MoR recipes on the same batches, and count what they choose.

    Stopped or out of time, it goes on where it was when started again.

    Example: seqloom study mor --seeds 3
    """


@dataclass(frozen=True)
class Counted:
    """Uses of operands in the first step of a branch: threshold -> uses, by seed."""

    by_seed: Sequence[Mapping[float, Sequence[Use]]]

    def share(self, threshold: float, denominator: str = "uses") -> float:
        return mean(shares(one[threshold])[denominator] for one in self.by_seed)

    def by_denominator(self, threshold: float) -> dict[str, float]:
        return {name: self.share(threshold, name) for name in shares(self.by_seed[0][threshold])}


def study(options: Options, folder: Path, watch: Observer) -> Findings:
    """Train and count what is missing, and judge all that is there.

    Raises:
        Interrupted: finished courses are stored, and the same command goes on.
    """
    planned = plan(options, RECIPES)
    found = train_branches(planned, folder, watch)
    return findings(found, look_at_branch_point(planned, folder, watch), count(planned, folder, watch))


def count(plan: Plan, folder: Path, watch: Observer) -> Counted:
    """What `mor_tensor` chooses at each threshold, in the first step after the branch point."""
    found = []
    for seed in range(plan.seeds):
        trunk = trunk_of(plan, seed, folder)

        def look(trunk: Any = trunk) -> list[Any]:
            trunk.train(watch)
            opened = Opened(trunk.run, trunk.at_branch, plan.branch_at)
            return [[to_data(use) for use in chosen(opened, threshold)] for threshold in THRESHOLDS]

        settings = {"run": to_data(trunk.run), "branch_at": plan.branch_at, "thresholds": list(THRESHOLDS)}
        stored, _ = measured(folder / "shares" / f"{plan.scale}-{seed}.json", settings, look)
        found.append({t: [Use(**use) for use in each] for t, each in zip(THRESHOLDS, stored, strict=True)})
    return Counted(found)


def chosen(opened: Opened, threshold: float) -> list[Use]:
    """Uses of operands in one step of `mor_tensor` with this threshold."""
    from seqloom.numerics.place import events

    opened.gradient(replace(_TENSOR, mor=MorOptions(threshold=threshold)))
    shapes = {name: parameter.shape for name, parameter in opened.model.named_parameters()}
    tokens = opened.run.task.sequence_length * (opened.run.task.micro_rows or opened.run.task.batch_rows)
    return uses(events(opened.model), shapes, tokens)


def findings(found: Branched, looks: Looks, counted: Counted) -> Findings:
    """What the branches and the counts say, however many branches there are."""
    return Findings(
        title="Mixture of Representations beside BF16 and FP8, from one checkpoint",
        source="MoR, arXiv 2512.22804",
        setting=precision_tables.settings(found),
        tables=[
            gap_table(found, looks),
            _trained(found),
            _thresholds(counted),
            _denominators(counted),
            _layers(counted),
        ],
        claims=[_most_in_fp8(counted), _steps(counted), _no_loss(found), _ladder(found)],
        remarks=[
            *precision_tables.remarks(found),
            "Metric, threshold and partitions are reconstructed from the abstract, whose figure names no denominator.",
            "For smooth distributions the mean relative error of E4M3 is 2.25 % whatever the scale, so the share jumps "
            "from nothing to nearly all between thresholds of 2 and 3 %.",
        ],
        charts=[gap_chart(found)],
        data=precision_tables.data(found, looks)
        | {"shares": [{str(t): shares(each) for t, each in one.items()} for one in counted.by_seed]},
    )


def _trained(found: Branched) -> Table:
    def row(name: str) -> tuple[str, ...]:
        courses = [found.courses.get((name, seed)) for seed in range(found.plan.seeds)]
        known = [course.shares for course in courses if course is not None and course.shares]
        told = [
            f"{mean(each.get(s, 0.0) for each in known):.2%}" if known else "-" for s in ("fp8_share", "nvfp4_share")
        ]
        return name, *told

    return Table(
        title="Held in few bits while training on (all uses of operands, all steps of the branch)",
        headings=("recipe", "FP8", "NVFP4"),
        rows=[row(name) for name in (TENSOR, BLOCKS, THREE_WAY, LADDER)],
        note="Of mor_subtensor one use counts as many times as it has blocks.",
    )


def _thresholds(counted: Counted) -> Table:
    return Table(
        title="Share of uses in FP8 by threshold, first step of the branch",
        headings=("threshold", "share"),
        rows=[(f"{threshold:.1%}", f"{counted.share(threshold):.2%}") for threshold in THRESHOLDS],
    )


def _denominators(counted: Counted) -> Table:
    return Table(
        title=f"Share in FP8 by denominator, threshold {CHOSEN:.1%}",
        headings=("of all", "share"),
        rows=[(name, f"{share:.2%}") for name, share in counted.by_denominator(CHOSEN).items()],
        note="Uses: operands of the three products. Tensors: x, W and dy once each, FP8 in every use. Products: both "
        "operands FP8. Model: tensors, with those of the output head. Paper: 98.38 % of tensors.",
    )


def _layers(counted: Counted) -> Table:
    rows = [
        (layer, *(f"{share:.0%}" for share in operands.values()))
        for layer, operands in by_layer(counted.by_seed[0][CHOSEN]).items()
        if min(operands.values()) < 1
    ]
    return Table(
        title="Layers with an operand that is not always FP8, first seed",
        headings=("layer", "x", "w", "dy"),
        rows=rows or [("none", "-", "-", "-")],
    )


def _most_in_fp8(counted: Counted) -> Claim:
    found = counted.by_denominator(CHOSEN)
    told = ", ".join(f"{found[name]:.2%} of {name}" for name in ("uses", "tensors", "elements", "products", "model"))
    return Claim(
        name="C6 share",
        says="At least 95 % of tensors are held in FP8.",
        paper="98.38 % of tensors",
        here=told,
        holds=found["uses"] >= 0.95,
    )


def _steps(counted: Counted) -> Claim:
    found = [counted.share(threshold) for threshold in THRESHOLDS]
    return Claim(
        name="C6 threshold",
        says="A larger threshold never holds fewer tensors in FP8, and one of 1 % holds none.",
        paper="no figure; follows from the rule",
        here=", ".join(f"{share:.1%} at {threshold:.1%}" for threshold, share in zip(THRESHOLDS, found, strict=True)),
        holds=found == sorted(found) and found[0] == 0,
    )


def _no_loss(found: Branched) -> Claim:
    gap, spread = found.late_gap(TENSOR), found.null_spread()
    return Claim(
        name="H9 loss",
        says="Choosing per tensor loses nothing that can be told from chance, or less than 0.4 %.",
        paper="on par with FP8 recipes of finer scales",
        here=MISSING if gap is None else f"{shown(gap)} ({beside_null(found, gap)})",
        holds=None if gap is None or spread is None else abs(gap.mean) < max(0.004, 2 * spread),
    )


def _ladder(found: Branched) -> Claim:
    ladder, tensor = found.late_gap(LADDER), found.late_gap(TENSOR)
    return Claim(
        name="ladder",
        says="With NVFP4 as the first choice the loss stays within 1.5 % of BF16.",
        paper="named as possible, not measured",
        here=MISSING if ladder is None or tensor is None else f"{shown(ladder)}; without it {shown(tensor)}",
        holds=None if ladder is None else abs(ladder.mean) < 0.015,
    )
