"""What a study of narrow states says of its measurements, beside the paper's figures."""

from statistics import mean
from typing import Any

from seqloom.nn.state_formats import SsmFormat
from seqloom.studies.paired import Difference, difference, shown
from seqloom.studies.state_rounding import SITUATIONS
from seqloom.studies.study import Claim, Table

EXACT, KV = "fp32", "kv fp8"
"""The names of the FP32 state that everything is compared with, and of keys and values in FP8 beside it."""

PAPER = {
    "fp16": (2.32, 10.84), "fp16_sr": (-0.32, 1.13), "int8": (2.87, 10.72), "int8_sr": (0.00, 2.03),
    "fp8": (12.68, 26.07), "fp8_sr": (1.96, 3.95),
}  # fmt: skip
"""Accuracy lost and growth of verbosity in percent, against an FP32 state; blocks of 128."""

KINDS: tuple[SsmFormat, ...] = ("fp16", "int8", "fp8")
FREE, STALL = 1e-3, 5.0
"""What counts as no loss, as a share; and how many times the error of stochastic rounding a stalled state has."""
NOTHING = 1e-6
"""Nats of drift that change no answer, whichever rounding has less of them."""


def _gap(decoded: dict[str, Any], name: str) -> Difference:
    """By how much the loss is above that with an FP32 state, over all seeds."""
    exact = decoded[EXACT]["nats"]
    found = difference([case["nats"] / exact - 1 for case in _of(decoded, name)])
    assert found is not None
    return found


def _drift(decoded: dict[str, Any], name: str) -> float:
    return mean(mean(case["drift"]) for case in _of(decoded, name))


def _millionths(drift: float) -> str:
    return f"{1e6 * drift:.4f}" if 0 < drift < NOTHING / 10 else f"{1e6 * drift:,.3g}"


def _of(found: dict[str, Any], name: str) -> list[Any]:
    """What was measured of a format, by seed."""
    return [case for each, case in found.items() if each.split(" ")[0] == name or each == name]


def paper_table(decoded: dict[str, Any]) -> Table:
    rows = [
        (
            name,
            f"{accuracy:+.2f}%",
            f"{verbosity:+.2f}%",
            shown(_gap(decoded, name)),
            _millionths(_drift(decoded, name)),
        )
        for name, (accuracy, verbosity) in PAPER.items()
    ]
    return Table(
        title="Paper and here, against an FP32 state",
        headings=("state", "paper: accuracy lost", "paper: longer answers", "here: loss", "here: drift"),
        rows=rows,
        note="Drift is KL(FP32 || format) in millionths of a nat per token; ± is the 95% interval over seeds.",
    )


def text_table(decoded: dict[str, Any]) -> Table:
    rows = []
    for name in (EXACT, KV, "bf16", *PAPER):
        found = _of(decoded, name)
        quarters = [mean(case["drift"][quarter] for case in found) for quarter in range(4)]
        rows.append(
            (
                name,
                f"{found[0]['bytes'] / 1024:.1f}",
                f"{mean(case['nats'] for case in found):.5f}",
                *map(_millionths, quarters),
                f"{mean(case['another'] for case in found):.2%}",
            )
        )
    return Table(
        title="Held-out text, token by token",
        headings=("state", "KiB a row", "nats", *(f"drift {n}/4" for n in range(1, 5)), "another likeliest token"),
        rows=rows,
        note="Drift in millionths of a nat, by quarter of the passage. KiB of all layers after the last token, with "
        "keys and values.",
    )


def recurrence_table(bare: dict[str, dict[str, float]]) -> Table:
    rows = [
        (name, *(f"{mean(case[each] for case in _of(bare, name)):.2%}" for each in SITUATIONS))
        for name in ("bf16", *PAPER)
    ]
    return Table(
        title="Error of the bare recurrence at its end",
        headings=("state", *SITUATIONS),
        rows=rows,
        note="What is read of an entry that comes or goes while another one is kept, against what is true. Near or "
        "above 100%, nothing of an entry that comes has arrived.",
    )


def stalls(bare: dict[str, dict[str, float]], kind: str) -> Claim:
    slow = next(iter(SITUATIONS))
    longer = [PAPER[name][1] for name in (kind, f"{kind}_sr")]
    nearest, stochastic = (mean(case[slow] for case in _of(bare, name)) for name in (kind, f"{kind}_sr"))
    return Claim(
        name=f"{kind} stalls",
        says=f"A slow {kind.upper()} state stalls under nearest rounding and keeps its mean under stochastic rounding.",
        paper=f"answers {longer[0]:.2f}% longer with nearest, {longer[1]:.2f}% with stochastic rounding",
        here=f"error {nearest:.2%} with nearest, {stochastic:.2%} with stochastic rounding",
        holds=nearest > STALL * stochastic,
    )


def free(decoded: dict[str, Any]) -> Claim:
    gap = _gap(decoded, "fp16_sr")
    return Claim(
        name="fp16_sr is free",
        says="An FP16 state with stochastic rounding costs nothing.",
        paper="-0.32% accuracy lost",
        here=f"loss {shown(gap)}; counted as nothing up to {FREE:.1%}",
        holds=gap.mean + (gap.half or 0.0) < FREE,
    )


def nearer(decoded: dict[str, Any], kind: str) -> Claim:
    lost = [PAPER[name][0] for name in (f"{kind}_sr", kind)]
    stochastic, nearest = (_drift(decoded, name) for name in (f"{kind}_sr", kind))
    idle = "; neither is enough to change an answer" if max(stochastic, nearest) < NOTHING else ""
    return Claim(
        name=f"{kind} on text",
        says=f"With an {kind.upper()} state a model stays nearer to itself when rounding is stochastic.",
        paper=f"accuracy lost {lost[0]:.2f}% against {lost[1]:.2f}%",
        here=f"drift {_millionths(stochastic)} against {_millionths(nearest)} millionths of a nat{idle}",
        holds=stochastic < nearest,
    )


def keys_values(decoded: dict[str, Any]) -> Claim:
    gap = _gap(decoded, KV)
    return Claim(
        name=f"{KV} is free",
        says="Keys and values in FP8 cost nothing.",
        paper="Super in FP8 with its KV cache: MMLU-Pro 83.63 against 83.73",
        here=f"loss {shown(gap)}; counted as nothing up to {FREE:.1%}",
        holds=gap.mean < FREE,
    )
