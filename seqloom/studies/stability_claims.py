"""The claims of the paper on stability methods, held against a sweep, and what a reader must know beside them."""

import math

from seqloom.studies.output_norms import growth
from seqloom.studies.stability_sweep import RISE, Sweep
from seqloom.studies.stability_tables import PAPER_PERPLEXITY, percent, stable_rate
from seqloom.studies.study import Claim

NORM_METHODS = ("qk_norm", "qk_norm_cap", "qkv_norm", "qk_fc_norm")
SLOWER = {"qk_norm": 1.05, "qkv_norm": 1.05, "qk_norm_cap": 1.10}


def claims(sweep: Sweep) -> list[Claim]:
    """All of them, measured or not."""
    return [
        _grades(sweep),
        _rates(sweep),
        _outputs(sweep),
        _warning(sweep),
        _quality(sweep),
        _cap(sweep),
        _speed(sweep),
    ]


def _grades(sweep: Sweep) -> Claim:
    holds, here = None, "needs base, qk_norm and all rates"
    base, grade, of_norm = sweep.excess("base"), sweep.sensitivity("base"), sweep.sensitivity("qk_norm")
    others = {name: e for name in ("qk_norm", "qk_fc_norm", "sigma_reparam") if (e := sweep.excess(name)) is not None}
    if base is not None and grade is not None and of_norm is not None:
        best = min(others, key=lambda method: others[method])
        holds = base >= 0.5 and others[best] <= base / 2 and of_norm < grade
        here = (
            f"at {sweep.rates[-1]:g} base is {base:.2f} nats above its own best, {best} {others[best]:.2f}; "
            f"sensitivity {grade:.3f}, with qk_norm {of_norm:.3f}"
        )
    return Claim(
        name="grades",
        says="At the largest rate the plain model is at least 0.5 nats above its own best, a norm method at most half "
        "of that; with qk_norm the rate matters less.",
        paper="the plain model diverges first",
        here=here,
        holds=holds,
    )


def _rates(sweep: Sweep) -> Claim:
    holds, here = None, "needs base, qk_norm, and qkv_norm or qk_norm_cap at all rates"
    base, norm = sweep.largest_stable("base"), sweep.largest_stable("qk_norm")
    further = [rate for name in ("qkv_norm", "qk_norm_cap") if (rate := sweep.largest_stable(name)) is not None]
    if base == 0:
        here = f"base diverged at the smallest rate, {sweep.rates[0]:g}"
    elif base and norm is not None and further:
        holds = norm >= 3 * base and max(further) >= norm
        here = f"{norm / base:.1f} times, and {max(further) / base:.1f} times"
        if base == sweep.rates[-1]:
            here = f"base was stable at every rate, up to {base:g}"
    return Claim(
        name="rates",
        says="qk_norm stands at least 3 times the learning rate of the plain model, qkv_norm or qk_norm_cap no less "
        "than qk_norm.",
        paper="6.7 times, and 10 times",
        here=here,
        holds=holds,
    )


def _outputs(sweep: Sweep) -> Claim:
    holds, here = None, "needs qk_norm and qk_fc_norm at all rates"
    norm, more = sweep.largest_stable("qk_norm"), sweep.largest_stable("qk_fc_norm")
    if norm is not None and more is not None:
        here = f"{stable_rate(sweep, more)} with them, {stable_rate(sweep, norm)} without"
        holds = None if norm == more == sweep.rates[-1] else more <= norm
    return Claim(
        name="outputs",
        says="Norms after Proj and FC2 allow no larger rate than qk_norm alone: the decisive place is Q and K.",
        paper="0.04 with them, 0.04 without",
        here=here,
        holds=holds,
    )


def _warning(sweep: Sweep) -> Claim:
    holds, here = None, "needs base at the normal and at a larger rate"
    found = growth(sweep)
    if found is not None and not found.wild.divergence:
        here = f"base did not diverge by itself at any rate, up to {found.wild.rate:g}"
    elif found is not None:
        warned, rose = found.warned, found.rose
        holds = warned is not None and rose is not None and warned < rose
        here = f"at {found.wild.rate:g} " + ("never all" if warned is None else f"all from step {warned}")
        here += ", and the loss never rose" if rose is None else f", the loss at step {rose}"
        here += f": {rose - warned} steps ahead" if holds and rose is not None and warned is not None else ""
    return Claim(
        name="warning",
        says="In a diverging run the outputs of QKV, Proj and FC2 are more than twice as large as in a converging one "
        f"before the loss has risen by {RISE:g} nats.",
        paper="more than twice at step 1000",
        here=here,
        holds=holds,
    )


def _quality(sweep: Sweep) -> Claim:
    holds, here = None, "needs base and a norm method at the normal rate"
    base = sweep.valid("base")
    losses = {method: loss for method in NORM_METHODS if (loss := sweep.valid(method)) is not None}
    if base is not None and losses:
        holds = max(losses.values()) <= base * (1 + sweep.quality_margin)
        here = ", ".join(f"{method} {percent(loss / base)}" for method, loss in losses.items())
    there = {method: math.log(PAPER_PERPLEXITY[method]) / math.log(PAPER_PERPLEXITY["base"]) for method in NORM_METHODS}
    return Claim(
        name="quality",
        says=f"At a normal rate the loss of the norm methods is at most {sweep.quality_margin:.0%} above the plain "
        "model's.",
        paper=", ".join(f"{method} {percent(ratio)}" for method, ratio in there.items()),
        here=here,
        holds=holds,
    )


def _cap(sweep: Sweep) -> Claim:
    holds, here = None, "needs base and soft_cap at the normal rate"
    base, capped = sweep.valid("base"), sweep.valid("soft_cap")
    if base is not None and capped is not None:
        ratio = math.exp(capped - base)
        holds, here = ratio >= 0.99, percent(ratio)
    return Claim(
        name="cap",
        says="A cap alone buys stability and no quality: its perplexity is not 1 % below the plain model's.",
        paper=percent(PAPER_PERPLEXITY["soft_cap"] / PAPER_PERPLEXITY["base"]),
        here=here,
        holds=holds,
    )


def _speed(sweep: Sweep) -> Claim:
    holds, here = None, "needs base and a norm method"
    found = {method: times for method in SLOWER if (times := sweep.slowdown(method)) is not None}
    if found:
        here = ", ".join(f"{method} {times:.2f}" for method, times in found.items())
        if sweep.scale == "gpu":
            holds = all(times <= SLOWER[method] for method, times in found.items())
        else:
            here += "; not judged at this size"
    return Claim(
        name="speed",
        says="A step takes at most 1.05 times as long with norms, and 1.10 times with norms and a cap.",
        paper="no figures; these limits are ours, for a GPU",
        here=here,
        holds=holds,
    )


def remarks(sweep: Sweep) -> list[str]:
    """In whole sentences, from the data."""
    planned = len(sweep.methods) * len(sweep.rates) * sweep.seeds
    lost = sum(not cell.trial.finite for cell in sweep.cells)
    rose = sum(bool(cell.divergence) for cell in sweep.cells) - lost
    beside = sum(bool(sweep.divergence(cell)) for cell in sweep.cells) - lost - rose
    told = [
        f"{len(sweep.cells)} of {planned} runs were trained. {lost} left the finite numbers, {rose} stood more than "
        f"{RISE:g} nats above their own minimum at the end, and {beside} count as diverged only because another method "
        "did better at the same rate."
    ]
    if not lost and not rose:
        told.append(
            "No run diverged by itself. With clipping and Adam a small model degrades instead of blowing up, so at "
            "this size only the graded measures say something, and the paper's ranking of the methods cannot be judged."
        )
    if len(sweep.rates) > 1:
        apart = max(larger / smaller for smaller, larger in zip(sweep.rates, sweep.rates[1:], strict=False))
        told.append(f"Rates are up to {apart:.1f} times apart, and no largest stable rate is known better than that.")
    finals = [[cell.final for cell in sweep.at(method, sweep.normal)] for method in sweep.methods]
    spreads = [max(losses) - min(losses) for losses in finals if len(losses) > 1]
    told.append(
        f"At the normal rate the seeds of one method end up to {max(spreads):.3f} nats apart."
        if spreads
        else "There is one seed, as in the paper; how far chance alone moves a figure cannot be told from it."
    )
    told.append(
        "The paper's model encodes positions and has LayerNorms; ours has no position encoding, and RMSNorm in front "
        "of its layers. The norms that the methods add are LayerNorms in both."
    )
    return told
