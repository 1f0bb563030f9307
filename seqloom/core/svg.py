"""Charts as SVG inside a page: no script, no font and no address from elsewhere; colours come from the page's style.

A line chart answers to the pointer all the same: invisible bands over it carry the values at their place as titles.
"""

import math
from collections.abc import Sequence
from itertools import groupby

import numpy as np

from seqloom.core.charts import Array, Axis, Line, LineChart, known, shades, thin
from seqloom.core.markup import Html, text
from seqloom.core.readable import short

COLOURS = 8
BANDS = 48
LEFT, RIGHT, TOP, BOTTOM = 54, 12, 10, 34  # margins around the plot

STYLE = """
svg.chart{display:block;width:100%;height:auto;font:12px system-ui,sans-serif;font-variant-numeric:tabular-nums}
svg.chart text{fill:var(--muted)}
svg.chart .grid{stroke:var(--rule);stroke-width:1}
svg.chart .line{fill:none;stroke:var(--c);stroke-width:2;stroke-linejoin:round;stroke-linecap:round}
svg.chart .faint{stroke-width:1;opacity:.35}
svg.chart .dots{stroke-width:6}
svg.chart .band{fill:transparent}
svg.chart .band:hover{fill:var(--ink);fill-opacity:.08}
svg.strip{display:block;width:100%;height:14px;background:var(--none)}
"""


def svg_lines(chart: LineChart, width: int = 360, height: int = 220) -> Html:
    """A line chart; where there is nothing to draw it says so."""
    everything = np.concatenate([np.empty((0, 2)), *(known(line.points) for line in chart.lines)])
    xs, ys = Axis(everything[:, 0], chart.log_x), Axis(everything[:, 1], chart.log_y, margin=0.05)
    plot = _Plot(xs, ys, width - LEFT - RIGHT, height - TOP - BOTTOM)
    lines = [(line, thin(line.points, xs)) for line in chart.lines]
    body = "".join(plot.path(line, points) for line, points in lines)
    body = plot.grid(chart.x) + body + plot.bands(lines, chart.x) if body else plot.nothing()
    label = text(describe(chart))
    return f'<svg class="chart" viewBox="0 0 {width} {height}" role="img" aria-label="{label}">{body}</svg>'


def svg_strip(row: Sequence[float | None], scale: str) -> str:
    """One row of a heat map; neighbours of equal colour are one rectangle."""
    place, parts = 0, []
    for shade, run in groupby(shades(row, "share" if scale == "share" else "relative")):
        length = len(list(run))
        if shade is not None:
            parts.append(f'<path class="{scale[0]}{shade}" d="M{place} 0h{length}v1h-{length}z"/>')
        place += length
    box = f"0 0 {max(1, len(row))} 1"
    return (
        f'<svg class="strip" viewBox="{box}" preserveAspectRatio="none" aria-hidden="true" '
        f'shape-rendering="crispEdges">{"".join(parts)}</svg>'
    )


def describe(chart: LineChart) -> str:
    """A chart in words, for those who do not see it."""
    said = []
    for line in chart.lines:
        array = known(line.points)
        if len(array) and not line.faint:
            (first_x, first), (last_x, last), y = array[0], array[-1], array[:, 1]
            said.append(
                f"{line.name} from {short(first)} at {short(first_x)} to {short(last)} at {short(last_x)}, "
                f"least {short(y.min())}, greatest {short(y.max())}"
            )
    return f"{chart.title}, {chart.y} over {chart.x}: {'; '.join(said) or 'nothing recorded yet'}"


class _Plot:
    """The area inside the margins."""

    def __init__(self, xs: Axis, ys: Axis, width: int, height: int) -> None:
        self._xs, self._ys, self._width, self._height = xs, ys, width, height

    def grid(self, x_label: str) -> str:
        bottom, right = TOP + self._height, LEFT + self._width
        parts = []
        for share, label in self._ys.ticks():
            y = self._down(share)
            parts.append(f'<path class="grid" d="M{LEFT} {y}H{right}"/>')
            parts.append(f'<text x="{LEFT - 6}" y="{y}" dy=".35em" text-anchor="end">{label}</text>')
        for share, label in self._xs.ticks(max(4, self._width // 70)):
            x = self._left(share)
            parts.append(f'<path class="grid" d="M{x} {bottom}v4"/>')
            parts.append(f'<text x="{x}" y="{bottom + 16}" text-anchor="middle">{label}</text>')
        parts.append(f'<text x="{right}" y="{bottom + 30}" text-anchor="end">{text(x_label)}</text>')
        return "".join(parts)

    def path(self, line: Line, points: Array) -> str:
        """The line, and its points when they are few or alone."""
        runs: list[list[str]] = [[]]
        for x, y in zip(self._xs.shares(points[:, 0]).tolist(), self._ys.shares(points[:, 1]).tolist(), strict=True):
            if math.isnan(y):
                runs.append([])
            else:
                runs[-1].append(f"{self._left(x)} {self._down(y)}")
        runs = [run for run in runs if run]
        if not runs:
            return ""
        colour = f"c{line.colour % COLOURS}{' alt' if line.colour >= COLOURS else ''}"
        drawn = "".join("M" + "L".join(run) + ("h0" if len(run) == 1 else "") for run in runs)
        parts = f'<path class="line {colour}{" faint" if line.faint else ""}" d="{drawn}"/>'
        marked = [place for run in runs for place in run if line.dots or len(run) == 1]
        if marked and not line.faint:
            parts += f'<path class="line dots {colour}" d="{"".join(f"M{place}h0" for place in marked)}"/>'
        return parts

    def bands(self, lines: Sequence[tuple[Line, Array]], x_label: str) -> str:
        """Invisible columns whose titles are the values there."""
        said: dict[int, list[str]] = {}
        first: dict[int, float] = {}
        for line, points in lines:
            array = known(points[:0] if line.faint else points)
            places = np.minimum((self._xs.shares(array[:, 0]) * BANDS).astype(int), BANDS - 1).tolist()
            for band, (x, y) in dict(zip(places, array.tolist(), strict=True)).items():  # the last one of each band
                first.setdefault(band, x)
                said.setdefault(band, []).append(f"{line.name} {short(y, 4)}")
        width = self._width / BANDS
        parts = []
        for band, texts in sorted(said.items()):
            place = f'x="{LEFT + band * width:.1f}" y="{TOP}" width="{width:.1f}" height="{self._height}"'
            title = text(f"{x_label} {short(first[band], 4)}: {', '.join(texts)}")
            parts.append(f'<rect class="band" {place}><title>{title}</title></rect>')
        return "".join(parts)

    def nothing(self) -> str:
        return f'<text x="{self._left(0.5)}" y="{self._down(0.5)}" text-anchor="middle">nothing recorded yet</text>'

    def _left(self, share: float) -> str:
        return f"{LEFT + share * self._width:.1f}"

    def _down(self, share: float) -> str:
        return f"{TOP + (1 - share) * self._height:.1f}"
