"""Charts as one PNG, drawn with matplotlib (extra `report`)."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from seqloom.core.charts import LARGEST, Axis, HeatMap, LineChart, as_array, shades, thin
from seqloom.core.errors import ConfigError
from seqloom.core.extras import require
from seqloom.core.readable import short

COLUMNS = 3


def write_png(charts: Sequence[LineChart | HeatMap], path: Path, title: str) -> None:
    """Draw charts side by side into a file.

    Raises:
        ConfigError: matplotlib is not installed, or the file cannot be written.
    """
    figures = require("report", "matplotlib.figure")
    rows = max(1, math.ceil(len(charts) / COLUMNS))
    figure = figures.Figure(figsize=(5.6 * COLUMNS, 3.4 * rows), layout="constrained")
    figure.suptitle(_plain(title))
    places = figure.subplots(rows, COLUMNS, squeeze=False).flatten()
    for chart, axes in zip(charts, places, strict=False):
        axes.set_title(_plain(chart.title), loc="left", fontsize=10)
        axes.set_xlabel(_plain(chart.x))
        if isinstance(chart, LineChart):
            _draw_lines(chart, axes)
        else:
            _draw_map(chart, axes)
    for axes in places[len(charts) :]:
        axes.set_axis_off()
    try:
        figure.savefig(path, dpi=110)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error.strerror}") from error
    except ValueError as error:  # an ending that is no picture format
        raise ConfigError(f"{path}: {error}") from error


def _draw_lines(chart: LineChart, axes: Any) -> None:
    axes.set_ylabel(_plain(chart.y))
    axes.set_xscale("log" if chart.log_x else "linear")
    axes.set_yscale("log" if chart.log_y else "linear")
    axes.grid(alpha=0.3)
    for line in chart.lines:
        array = as_array(line.points)
        array = thin(array, Axis(array[:, 0], chart.log_x))
        x, y = array[:, 0], np.where(np.abs(array[:, 1]) < LARGEST, array[:, 1], np.nan)
        style = {"alpha": 0.35, "linewidth": 0.8} if line.faint else {"label": _plain(line.name)}
        marker = "o" if line.dots or len(array) == 1 else ""
        axes.plot(x, y, color=f"C{line.colour}", marker=marker, markersize=4, **style)
    if len([line for line in chart.lines if not line.faint]) > 1:
        axes.legend(fontsize=8)


def _draw_map(chart: HeatMap, axes: Any) -> None:
    colours = [
        [math.nan if shade is None else shade for shade in shades(row, chart.scale)] for row in chart.rows.values()
    ]
    lowest, palette = (-4, "RdBu_r") if chart.scale == "relative" else (0, "Blues")
    axes.imshow(colours, aspect="auto", vmin=lowest, vmax=lowest + 8, cmap=palette, interpolation="nearest")
    axes.set_yticks(range(len(chart.rows)), [_plain(name) for name in chart.rows], fontsize=5)
    ticks = range(0, len(chart.columns), max(1, len(chart.columns) // 6))
    axes.set_xticks(ticks, [short(chart.columns[place]) for place in ticks])


def _plain(text: str) -> str:
    """Text in which matplotlib sees no formula."""
    return text.replace("$", r"\$")
