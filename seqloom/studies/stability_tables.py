"""The figures of a stability sweep as tables and curves, beside those of the paper."""

import math
from statistics import median

from seqloom.core.charts import Line, LineChart, smooth
from seqloom.studies.output_norms import LINEARS, WATCHED, growth, norms_by_step
from seqloom.studies.stability_sweep import Sweep
from seqloom.studies.study import Table

PAPER_RATES = (6e-3, 8e-3, 20e-3, 40e-3, 60e-3, 80e-3)
PAPER_LARGEST = {
    "base": 6e-3, "soft_temp": 8e-3, "soft_clip": 8e-3, "sigma_reparam": 20e-3, "layer_scale": 20e-3,
    "soft_cap": 40e-3, "qk_norm": 40e-3, "qk_fc_norm": 40e-3, "qkv_norm": 60e-3, "qk_norm_cap": 80e-3,
}  # fmt: skip
"""Largest rate of the paper's six that did not diverge; qk_norm_cap at 80e-3 is doubtful."""

PAPER_PERPLEXITY = {
    "base": 11.19, "soft_cap": 11.24, "qkv_norm": 10.85, "qk_norm_cap": 11.00, "qk_norm": 10.84, "qk_fc_norm": 10.87,
}  # fmt: skip
"""At rate 3e-4 after 0.2 T tokens; ± 0.1."""


def matrix(sweep: Sweep) -> Table:
    def cell(method: str, rate: float) -> str:
        found, final = sweep.at(method, rate), sweep.final(method, rate)
        if final is None:
            return "-"
        count = sum(bool(sweep.divergence(one)) for one in found)
        share = f" {count}/{len(found)}" if len(found) > 1 else ""
        return f"{final:.2f}{f' div{share}' if count else ''}"

    return Table(
        title="Final training loss in nats by learning rate; div: diverged",
        headings=("method", *(f"{rate:g}" for rate in sweep.rates)),
        rows=[(method, *(cell(method, rate) for rate in sweep.rates)) for method in sweep.methods],
        note="The paper's six rates were " + ", ".join(f"{rate:g}" for rate in PAPER_RATES) + ", at another size.",
    )


def largest(sweep: Sweep) -> Table:
    there, here = PAPER_LARGEST["base"], sweep.largest_stable("base")

    def row(method: str) -> tuple[str, ...]:
        paper, found, grade = PAPER_LARGEST.get(method), sweep.largest_stable(method), sweep.sensitivity(method)
        return (
            method,
            "-" if paper is None else f"{paper:g}",
            "-" if paper is None else f"{paper / there:.1f}",
            stable_rate(sweep, found),
            f"{found / here:.1f}" if found and here else "-",
            "-" if grade is None else f"{grade:.3f}",
        )

    return Table(
        title="Largest stable learning rate",
        headings=("method", "paper", "times base", "here", "times base", "sensitivity here"),
        rows=[row(method) for method in sweep.methods],
    )


def quality(sweep: Sweep) -> Table:
    base = sweep.valid("base")

    def row(method: str) -> tuple[str, ...]:
        paper, here = PAPER_PERPLEXITY.get(method), sweep.valid(method)
        return (
            method,
            "-" if paper is None else f"{paper:.2f}",
            "-" if paper is None else percent(paper / PAPER_PERPLEXITY["base"]),
            "-" if here is None else f"{math.exp(here):.2f}",
            "-" if here is None or base is None else percent(math.exp(here - base)),
            "-" if here is None or base is None else percent(here / base),
        )

    return Table(
        title=f"Validation perplexity at a normal learning rate: 3e-4 in the paper, {sweep.normal:g} here",
        headings=("method", "paper", "against base", "here", "against base", "loss against base"),
        rows=[row(method) for method in sweep.methods],
        note="The paper gives ± 0.1.",
    )


def norms(sweep: Sweep) -> list[Table]:
    """None without two rates of the plain model."""
    found = growth(sweep)
    if found is None or not found.ratios:
        return []

    def at(step: int | None, kind: str) -> str:
        known = [ratios[kind] for n, ratios in found.ratios.items() if step is not None and n <= step]
        return f"{known[-1]:.2f}" if known else "-"

    def row(kind: str) -> tuple[str, ...]:
        paper = "> 2" if kind in WATCHED else "-"
        most = max(ratios[kind] for ratios in found.ratios.values())
        return kind, paper, at(found.warned, kind), at(found.rose, kind), f"{most:.2f}"

    headings = ("paper, step 1000", _at_step("first all > 2", found.warned), _at_step("loss rose", found.rose), "most")
    return [
        Table(
            title=f"Output norms of the plain model at {found.wild.rate:g}, as times those at {found.calm.rate:g}",
            headings=("outputs of", *headings),
            rows=[row(kind) for kind in LINEARS],
        )
    ]


def overhead(sweep: Sweep) -> Table:
    def row(method: str) -> tuple[str, ...]:
        times = [cell.trial.step_seconds for cell in sweep.cells if cell.method == method]
        ratio = sweep.slowdown(method)
        return method, f"{1000 * median(times):.1f}" if times else "-", "-" if ratio is None else f"{ratio:.2f}"

    return Table(
        title="Time of a step",
        headings=("method", "milliseconds", "times base"),
        rows=[row(method) for method in sweep.methods],
    )


def charts(sweep: Sweep) -> list[LineChart]:
    """Losses over rates and over steps, and the growth of outputs; of several seeds the first is drawn over steps."""
    top, unit = sweep.rates[-1], "nats per token"
    finals = {method: [(rate, sweep.final(method, rate)) for rate in sweep.rates] for method in sweep.methods}
    drawn = [
        LineChart(
            title="Final loss by learning rate", x="learning rate", y=unit, log_x=True,
            lines=[Line(name=m, points=finals[m], colour=n, dots=True) for n, m in enumerate(sweep.methods)],
        ),
        LineChart(
            title=f"Loss at the largest rate, {top:g}", x="step", y=unit,
            lines=[
                Line(name=cell.method, points=smooth(list(enumerate(cell.trial.losses, start=1))), colour=number)
                for number, method in enumerate(sweep.methods)
                for cell in sweep.at(method, top)[:1]
            ],
        ),
    ]  # fmt: skip
    for kind in WATCHED:
        lines = [
            Line(
                name=f"{rate:g}",
                points=[(step, norms[kind]) for step, norms in norms_by_step(cell.trial).items()],
                colour=number,
            )
            for number, rate in enumerate(sweep.rates)
            for cell in sweep.at("base", rate)[:1]
        ]
        if lines:
            title = f"Outputs of {kind} in the plain model, by learning rate"
            drawn.append(LineChart(title=title, x="step", y="L2 norm of a token", lines=lines, log_y=True))
    return drawn


def stable_rate(sweep: Sweep, rate: float | None) -> str:
    """A largest stable rate in words; the largest one trained is only a lower bound."""
    if rate is None:
        return "-"
    return f"{rate:g}" + (" or more" if rate == sweep.rates[-1] else "") if rate else "none"


def percent(ratio: float) -> str:
    """How far a ratio is from one."""
    return f"{ratio - 1:+.1%}"


def _at_step(what: str, step: int | None) -> str:
    return f"{what}, step {step}" if step is not None else f"{what}: never"
