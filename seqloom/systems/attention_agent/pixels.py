"""Pixels as SVG, since a page here allows no images: runs of equal colour are rectangles, one path for each colour.

A frame is drawn once and used again wherever it is needed on the page.
"""

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from seqloom.core.markup import Html
from seqloom.rl.environment import Frame
from seqloom.systems.attention_agent.overlay import colour_of, preferred
from seqloom.systems.attention_agent.play import Maps

RUNS = 8000
"""Most rectangles of a frame; one with more is shown at half its resolution."""
LEVELS = 6
"""Steps of opacity of a map."""
FINE = 24
"""Cells that a map is at least refined to along its shorter side."""


def defined(frame: Frame, name: str) -> Html:
    """A frame to be used by name; draws nothing yet."""
    codes = (frame.astype(np.int64) * (65536, 256, 1)).sum(-1)
    while np.count_nonzero(np.diff(codes, axis=1)) + len(codes) > RUNS and min(codes.shape) > 1:
        codes = codes[::2, ::2]
    paths = "".join(f'<path fill="#{code:06x}" d="{path}"/>' for code, path in rectangles(codes).items())
    rows, columns = codes.shape
    box = f'viewBox="0 0 {columns} {rows}" preserveAspectRatio="none"'
    return f'<svg width="0" height="0" style="position:absolute"><symbol id="{name}" {box}>{paths}</symbol></svg>'


def drawing(name: str, frame: Frame, label: Html, *layers: Html) -> Html:
    """A frame that was defined, with layers over it."""
    rows, columns = frame.shape[:2]
    return (
        f'<svg viewBox="0 0 {columns} {rows}" role="img" aria-label="{label}" shape-rendering="crispEdges" '
        f'style="display:block;width:100%;background:#000"><use href="#{name}" width="{columns}" height="{rows}"/>'
        f"{''.join(layers)}</svg>"
    )


def layer(values: Maps, frame: Frame, colour: tuple[int, int, int]) -> Html:
    """A map [Y X] of shares over a frame, the more opaque the greater."""
    factor = max(1, FINE // min(values.shape))
    fine = preferred(values[None], values.shape[0] * factor, values.shape[1] * factor)[0]
    steps = (fine * LEVELS).round().astype(np.int64)
    paths = "".join(
        f'<path fill-opacity="{0.8 * step / LEVELS:.2f}" d="{path}"/>'
        for step, path in rectangles(steps).items()
        if step
    )
    rows, columns = frame.shape[:2]
    return (
        f'<g fill="#{colour[0]:02x}{colour[1]:02x}{colour[2]:02x}" '
        f'transform="scale({columns / fine.shape[1]:.5g} {rows / fine.shape[0]:.5g})">{paths}</g>'
    )


def layers(maps: Maps, frame: Frame) -> list[Html]:
    """The maps of all queries, each in its colour."""
    return [layer(each, frame, colour_of(query)) for query, each in enumerate(maps)]


def rectangles(codes: NDArray[np.int64]) -> dict[int, str]:
    """Path data of every code's pixels: runs along rows, joined with equal runs below."""
    rows, columns = codes.shape
    open_: dict[tuple[int, int, int], int] = {}
    parts: dict[int, list[str]] = {}
    for row in range(rows + 1):
        runs = set[tuple[int, int, int]]()
        if row < rows:
            edges = [0, *(np.flatnonzero(np.diff(codes[row])) + 1).tolist(), columns]
            runs = {(start, stop, int(codes[row, start])) for start, stop in pairwise(edges)}
        for (start, stop, code), top in [item for item in open_.items() if item[0] not in runs]:
            parts.setdefault(code, []).append(f"M{start} {top}h{stop - start}v{row - top}h{start - stop}z")
            del open_[start, stop, code]
        for run in runs:
            open_.setdefault(run, row)
    return {code: "".join(sorted(some)) for code, some in sorted(parts.items())}
