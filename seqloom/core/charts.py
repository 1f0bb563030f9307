"""What a chart shows, apart from how it is drawn: lines over an axis, or strips of colour by row.

One description is drawn as SVG for a page (`svg.py`) and as PNG (`png.py`). Here is what both need: round ticks,
logarithmic axes, and the thinning of long lines to what a picture can show without losing a single peak.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from seqloom.core.readable import short

Array = NDArray[np.float64]
Point = tuple[float, float | None]
Points = Sequence[Point] | Array
"""Pairs of x and y, or an array [N, 2] of them. A y of None, or one that is not finite, is a gap."""

MARKS = 250
"""Places along an axis that a thinned line keeps apart; at most five points are kept at each."""

LARGEST = 1e100
"""Beyond this a value has no place on an axis, so that ranges never overflow."""


@dataclass(frozen=True, kw_only=True)
class Line:
    """One series.

    Attributes:
        colour: number in the palette; lines that belong together share one.
        faint: a background to another line, such as what was smoothed; not in the legend.
        dots: few measured points, each marked.
    """

    name: str
    points: Points
    colour: int = 0
    faint: bool = False
    dots: bool = False


@dataclass(frozen=True, kw_only=True)
class LineChart:
    """Lines over a common axis.

    Attributes:
        x: what the horizontal axis counts, with its unit; likewise `y`.
    """

    title: str
    x: str
    y: str
    lines: Sequence[Line]
    log_x: bool = False
    log_y: bool = False


@dataclass(frozen=True, kw_only=True)
class HeatMap:
    """One strip of colour per row, over columns that all rows share.

    Attributes:
        scale: "relative" colours a value by how it compares with the median of its row, "share" from 0 to 1.
    """

    title: str
    x: str
    columns: Sequence[float]
    rows: dict[str, Sequence[float | None]]
    scale: Literal["relative", "share"] = "relative"


class Axis:
    """A range of values, linear or logarithmic, mapped to 0 to 1."""

    def __init__(self, values: Sequence[float] | Array, log: bool = False, margin: float = 0.0) -> None:
        """
        Args:
            margin: share of the range to leave free on both sides.
        """
        self.log = log
        places = self._places(np.asarray(values, dtype=np.float64))
        places = places[np.isfinite(places)]
        low, high = (float(places.min()), float(places.max())) if len(places) else (0.0, 1.0)
        self._whole = not log and high - low >= 2 and bool((places == places.round()).all())  # nothing lies between
        if high - low < 1e-9 * max(abs(low), abs(high), 1e-30):  # a single value
            spread = 0.3 if log else abs(low) * 0.1 or 0.5
            low, high = low - spread, high + spread
        else:
            low, high = low - margin * (high - low), high + margin * (high - low)
        self._low, self._high = low, high

    def shares(self, values: Array) -> Array:
        """Where values lie, 0 at the beginning of the axis and 1 at its end; NaN for those without a place."""
        return (self._places(values) - self._low) / (self._high - self._low)

    def ticks(self, count: int = 5) -> list[tuple[float, str]]:
        """Where round values lie within the range, and their labels; about `count` of them."""
        low, high = self._low, self._high
        if not self.log:
            values = _round_steps(low, high, count)
            values = [value for value in values if not self._whole or abs(value - round(value)) < 1e-9]
        elif high - low > 1.5:
            stride = math.ceil((high - low) / (count + 1))
            values = [10.0**power for power in range(math.ceil(low), math.floor(high) + 1) if power % stride == 0]
        else:
            decades = range(math.floor(low), math.floor(high) + 1)
            values = [digit * 10.0**power for power in decades for digit in (1, 2, 5)]
            values = [value for value in values if low <= math.log10(value) <= high]
            if len(values) < 2:
                values = _round_steps(10.0**low, 10.0**high, count)
        digits = 3
        while digits < 7 and len({short(value, digits) for value in values}) < len(values):
            digits += 1
        places = self.shares(np.array(values)).tolist()
        return [(place, short(value, digits)) for place, value in zip(places, values, strict=True)]

    def _places(self, values: Array) -> Array:
        placed = np.where(np.abs(values) < LARGEST, values, np.nan)
        if self.log:
            placed = np.log10(placed, where=placed > 0, out=np.full_like(placed, np.nan))
        return placed


def as_array(points: Points) -> Array:
    """Points as an array [N, 2] with NaN for gaps."""
    array = np.array(points, dtype=np.float64).reshape(-1, 2)
    array[~np.isfinite(array[:, 1]), 1] = np.nan
    return array


def known(points: Points) -> Array:
    """Points without the gaps."""
    array = as_array(points)
    return array[np.isfinite(array[:, 1])]


def thin(points: Points, axis: Axis, marks: int = MARKS) -> Array:
    """A line with at most five points at each of `marks` places along the axis: first, least, greatest, last, a gap.

    Points that have no place on the axis are left out; a gap stays a gap.
    """
    array = as_array(points)
    array = array[np.argsort(array[:, 0], kind="stable")]
    shares = axis.shares(array[:, 0])
    array, shares = array[np.isfinite(shares)], shares[np.isfinite(shares)]
    if len(array) <= marks:
        return array
    marked = np.minimum((shares * marks).astype(int), marks - 1)
    starts = [0, *(np.flatnonzero(np.diff(marked)) + 1).tolist(), len(array)]
    return np.concatenate([_extremes(array[start:end]) for start, end in pairwise(starts)])


def smooth(points: Points, share: float = 0.02) -> Array:
    """An exponential average over about this share of the points, without the pull of its beginning; gaps stay.

    Of many points, the means of short blocks are averaged.
    """
    array = _in_blocks(as_array(points))
    decay = 1 - 1 / max(1.0, share * len(array))
    total = weight = 0.0
    for place, y in enumerate(array[:, 1].tolist()):
        if not math.isnan(y):
            total, weight = decay * total + y, decay * weight + 1
            array[place, 1] = total / weight
    return array


def shades(row: Sequence[float | None], scale: Literal["relative", "share"]) -> list[int | None]:
    """Steps of colour: -4 to 4 for a quarter to four times the row's median by half octaves, or 0 to 8 for 0 to 1."""
    values = sorted(value for value in row if value is not None and math.isfinite(value))
    if not values:
        return [None] * len(row)
    median = values[len(values) // 2]

    def shade(value: float | None) -> int | None:
        if value is None or not math.isfinite(value):
            return None
        if scale == "share":
            return min(8, max(0, round(8 * value)))
        if value <= 0 or median <= 0:
            return 0 if value == median else 4 if value > median else -4
        return min(4, max(-4, round(2 * math.log2(value / median))))

    return [shade(value) for value in row]


def _in_blocks(array: Array, most: int = 2000) -> Array:
    """Means of consecutive points such that at most so many remain; a block of gaps is a gap."""
    if len(array) <= 2 * most:
        return array
    starts = np.arange(0, len(array), -(-len(array) // most))
    there = np.isfinite(array[:, 1])
    counts = np.add.reduceat(there.astype(int), starts)
    sums = np.add.reduceat(np.where(there, array[:, 1], 0.0), starts)
    means = np.divide(sums, counts, where=counts > 0, out=np.full(len(starts), np.nan))
    return np.stack([array[np.append(starts[1:], len(array)) - 1, 0], means], axis=1)


def _extremes(points: Array) -> Array:
    """The points that a picture shows of many at one place."""
    y = points[:, 1]
    there, gaps = np.flatnonzero(np.isfinite(y)), np.flatnonzero(np.isnan(y))[:1]
    if len(there) == 0:
        return points[gaps]
    kept = [there[0], there[y[there].argmin()], there[y[there].argmax()], there[-1], *gaps]
    return points[np.unique(kept)]


def _round_steps(low: float, high: float, count: int) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten, somewhat more or fewer than asked for."""
    rough = 0.75 * (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10, 20) if factor * power >= rough)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [number * step for number in range(first, last + 1)]
