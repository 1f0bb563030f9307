"""`seqloom compare`: runs beside one another as table, page and picture."""

from collections.abc import Sequence
from pathlib import Path

import tyro

from seqloom.cli.arguments import JsonFlag, parse, print_json


def main(arguments: list[str]) -> None:
    parse("compare", compare, arguments)


def compare(
    runs: tyro.conf.Positional[tuple[Path, ...]],
    *,
    out: Path | None = None,
    png: Path | None = None,
    as_json: JsonFlag = False,
) -> None:
    """Measures of runs beside one another, the settings in which they differ, and their curves overlaid.

    Example: seqloom compare runs/a runs/b --out compare.html

    Args:
        runs: two or more run folders; in progress or interrupted is fine.
        out: also write a page with the curves: loss by step, by tokens and by time.
        png: also draw the curves into this picture (needs the extra report).
    """
    from seqloom.core.png import write_png
    from seqloom.train.compare_page import Comparison
    from seqloom.train.history import read_history
    from seqloom.train.report_page import write_page

    comparison = Comparison([read_history(run) for run in runs])
    if out is not None:
        write_page(out, comparison.html())
    if png is not None:
        write_png([*comparison.losses().values(), *comparison.charts()], png, " · ".join(comparison.names))
    if as_json:
        written = {"page": str(out) if out else None, "png": str(png) if png else None}
        print_json(comparison.data() | written)
        return
    rows = [["", *comparison.names], *([measure.name, *measure.cells()] for measure in comparison.measures)]
    differing = [
        [path, *("null" if value is None else str(value) for value in values)]
        for path, values in comparison.settings.items()
    ]
    rows += [[""], ["settings that differ"], *differing] if differing else [[""], ["settings: all the same"]]
    print("\n".join(_aligned(rows)))
    for path in (out, png):
        if path is not None:
            print(path)


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of equal columns; a row of one cell is a line by itself."""
    full = [row for row in rows if len(row) > 1]
    widths = [max(len(row[column]) for row in full) for column in range(len(full[0]))]
    lines = ["  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=False)) for row in rows]
    return [line.rstrip() for line in lines]
