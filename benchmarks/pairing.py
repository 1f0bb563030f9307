"""Times of several sides that take turns, so that a busy machine slows all of them alike.

A ratio is formed within each turn, and only then is the median taken: what slows one whole turn cancels out.
"""

import gc
import time
from collections.abc import Callable, Mapping, Sequence
from statistics import median, quantiles
from typing import Any, NamedTuple

from benchmarks.case import Line

OURS = "ours"

PATIENCE_SECONDS = 300
"""After these a case that takes long makes do with fewer turns, but at least one."""


class Side(NamedTuple):
    """One of those who take turns.

    Attributes:
        run: what is timed.
        before: gives its argument, not timed; for what a turn uses up.
    """

    run: Callable[[Any], object]
    before: Callable[[], Any] = lambda: None


def plain(run: Callable[[], object]) -> Side:
    """A side that needs nothing before its turn."""
    return Side(lambda _: run())


def in_turns(sides: Mapping[str, Side], repeats: int, units: int = 1, warm: bool = False) -> Line:
    """Quartiles of each side's seconds for one unit of the work, and of the paired ratios, after a turn that warms up.

    Args:
        repeats: timed turns, unless `PATIENCE_SECONDS` are over before.
        units: how many of them, say tokens, a turn does.
        warm: everybody has run before, and needs no turn for that.
    """
    times: dict[str, list[float]] = {name: [] for name in sides}
    began = time.monotonic()
    gc.collect()
    gc.disable()  # what it collects, and when, is nobody's work
    try:
        for turn in range(1 if warm else 0, repeats + 1):
            if turn > 1 and time.monotonic() - began > PATIENCE_SECONDS:
                break
            _take(sides, turn, units, times)
    finally:
        gc.enable()
    return summary(times) | {"turns": len(times[OURS])}


def _take(sides: Mapping[str, Side], turn: int, units: int, times: dict[str, list[float]]) -> None:
    """One turn of every side; turn 0 is not counted."""
    for name in list(sides)[:: 1 if turn % 2 else -1]:  # nobody always follows the same one
        given = sides[name].before()
        start = time.perf_counter()
        sides[name].run(given)
        if turn:
            times[name].append((time.perf_counter() - start) / units)


def summary(times: Mapping[str, Sequence[float]]) -> Line:
    """Of seconds by side, turn by turn; ratios are those of the other sides to ours."""
    line: Line = {"seconds": {name: quartiles(taken) for name, taken in times.items()}}
    if others := {name: taken for name, taken in times.items() if name != OURS}:
        line["ratio"] = {name: ratios(taken, times[OURS]) for name, taken in others.items()}
    return line


def ratios(theirs: Sequence[float], ours: Sequence[float]) -> list[float]:
    """Quartiles of the ratios turn by turn."""
    return quartiles([their / our for their, our in zip(theirs, ours, strict=True)])


def quartiles(values: Sequence[float]) -> list[float]:
    """Lower quartile, median and upper quartile, to four digits."""
    if len(values) == 1:
        return [short(values[0])] * 3
    lower, _, upper = quantiles(values, n=4, method="inclusive")
    return [short(lower), short(median(values)), short(upper)]


def short(value: float) -> float:
    return float(f"{value:.4g}")
