"""What every study of number formats shows of its branches: one table of gaps, curves, and how a gap is judged."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from seqloom.core.charts import Line, LineChart, smooth
from seqloom.studies.courses import NULLS, REFERENCE, Branched
from seqloom.studies.paired import Difference, shown
from seqloom.studies.precision_looks import Looks
from seqloom.studies.study import Claim, Table

MISSING = "needs the reference and this branch of one seed"


def gap_table(found: Branched, looks: Looks) -> Table:
    """A row for every recipe: static, gradient, continued, time of a step."""

    def static(name: str) -> Sequence[str]:
        if name in NULLS:
            return "-", "-"
        error, cosine = (looks.mean(name, field) for field in ("gradient_error", "gradient_cosine"))
        return shown(looks.gap(name)), f"{error:.3f} / {cosine:.4f}"

    def row(name: str) -> Sequence[str]:
        times = [found.slowdown(name, seed) for seed in range(found.plan.seeds)]
        known = [time for time in times if time is not None]
        return (
            name,
            *static(name),
            shown(found.late_gap(name)),
            shown(found.valid_gap(name)),
            f"{sum(known) / len(known):.2f}" if known else "-",
        )

    spread = found.null_spread()
    return Table(
        title="Relative gap to BF16 (below zero is worse)",
        headings=(
            "recipe",
            "static",
            "gradient error / cosine",
            "continued, training",
            "continued, validation",
            "step time over BF16",
        ),
        rows=[row(name) for name in found.names],
        note="Static: validation loss of the same weights. Continued: mean of the last quarter of the branch's steps, "
        "and held-out text after the last. "
        + (
            ""
            if spread is None
            else f"The null branches part by up to {spread:.3%}; no gap within twice that is shown."
        ),
    )


def gap_chart(found: Branched) -> LineChart:
    """How the gap to the reference develops, of the first seed."""
    lines = []
    reference = found.courses.get((REFERENCE, 0))
    for number, name in enumerate(found.names):
        course = found.courses.get((name, 0))
        if course is None or reference is None:
            continue
        pairs = zip(reference.losses, course.losses, strict=False)
        points = [(found.plan.branch_at + i, 100 * (r - c) / r) for i, (r, c) in enumerate(pairs, start=1)]
        lines.append(Line(name=name, points=smooth(points, 0.1), colour=number % 8))
    return LineChart(
        title="Relative gap of the training loss", x="step", y="% of BF16 (below zero is worse)", lines=lines
    )


def within(found: Branched, claim: Mapping[str, str], name: str, limit: float) -> Claim:
    """A claim that the late gap of a branch is at most so large, either way.

    Args:
        claim: name, says and paper of the claim.
    """
    gap = found.late_gap(name)
    here = MISSING if gap is None else f"{shown(gap)} ({beside_null(found, gap)})"
    return Claim(**claim, here=here, holds=None if gap is None else abs(gap.mean) < limit)


def beside_null(found: Branched, gap: Difference) -> str:
    """What the null branches say of a gap."""
    spread = found.null_spread()
    if spread is None:
        return "no null branch yet"
    return f"{'beyond' if abs(gap.mean) > 2 * spread else 'within'} twice the null spread of {spread:.3%}"


def settings(found: Branched) -> dict[str, str]:
    """Under which conditions, for a report."""
    plan, run = found.plan, found.plan.trunk
    steps = run.train.steps
    return {
        "scale": plan.scale,
        "model": f"{run.model.pattern}, width {run.model.width}, vocabulary {run.model.vocab_size}",
        "text": ", ".join(source.title for source in run.task.data.sources),
        "step": f"{run.task.batch_rows} rows of {run.task.sequence_length} tokens",
        "trunk": f"{steps} steps of {run.train.optimizer.kind} in BF16; branches from step {plan.branch_at}",
        "seeds": str(plan.seeds),
        "computed on": ", ".join(sorted(found.machines)) or "not yet",
    }


def remarks(found: Branched) -> list[str]:
    """What is to be said of any such study."""
    planned = found.plan.seeds * (1 + len(found.names))
    told = [f"{len(found.courses)} of {planned} courses of training were run."]
    told += found.ended()
    if found.plan.seeds == 1:
        told.append(
            "There is one seed: the null branches say how far chance moves a gap, an interval cannot be formed."
        )
    told.append(
        "The papers' models are a thousand times larger and saw a million times more tokens; a gap here stands for the "
        "formats and the method, not for theirs."
    )
    return told


def data(found: Branched, looks: Looks) -> dict[str, Any]:
    """Everything that the tables were made from."""
    courses = [{"name": name, "seed": seed, **asdict(course)} for (name, seed), course in found.courses.items()]
    return {"courses": courses, "looks": looks.data(), "null_spread": found.null_spread()}
