"""A static page: one HTML file with everything in it, for a browser that is offline and for one that runs no scripts.

Everything that comes from data passes `text`; and the page's own policy forbids scripts
and addresses, should anything ever slip through.
"""

from collections.abc import Iterable, Mapping, Sequence

from seqloom.core import page_style, svg
from seqloom.core.charts import HeatMap, LineChart
from seqloom.core.markup import Html as Html
from seqloom.core.markup import text as text
from seqloom.core.readable import short
from seqloom.core.svg import COLOURS, svg_lines, svg_strip


def page(title: str, body: Iterable[Html]) -> Html:
    """A whole file.

    Args:
        title: plain text, shown by the browser; the page's own heading is part of the body.
    """
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n"
        f'<meta name="color-scheme" content="light dark">\n<title>{text(title)}</title>\n'
        f"<style>{page_style.STYLE}{svg.STYLE}</style>\n"
        f"</head>\n<body>\n<main>\n{chr(10).join(body)}\n</main>\n</body>\n</html>\n"
    )


def section(heading: str, *parts: Html, open_: bool | None = None) -> Html:
    """A part of the page under a heading.

    Args:
        open_: make it a fold, open or closed at first; None is always open.
    """
    inside = "\n".join(parts)
    if open_ is None:
        return f"<section><h2>{text(heading)}</h2>\n{inside}\n</section>"
    return f"<details{' open' if open_ else ''}><summary><h2>{text(heading)}</h2></summary>\n{inside}\n</details>"


def tiles(facts: Mapping[str, str]) -> Html:
    """A few figures to be seen first: what, and how much."""
    inside = "".join(f"<div><dt>{text(name)}</dt><dd>{text(value)}</dd></div>" for name, value in facts.items())
    return f'<dl class="tiles">{inside}</dl>'


def table(
    label: str, headings: Sequence[str], rows: Iterable[Sequence[object]], best: Mapping[int, int] | None = None
) -> Html:
    """A table whose first column names the rows; wider than the screen, it scrolls by itself.

    Args:
        label: what it shows, for those who do not see it.
        best: row -> column of a cell to bring out.
    """
    head = "".join(f'<th scope="col">{text(heading)}</th>' for heading in headings)
    lines = []
    for number, (name, *cells) in enumerate(rows):
        inside = "".join(
            f"<td{' class=best' if best and best.get(number) == column else ''}>{text(cell)}</td>"
            for column, cell in enumerate(cells, start=1)
        )
        lines.append(f'<tr><th scope="row">{text(name)}</th>{inside}</tr>')
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{text(label)}">'
        f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"
    )


def block(value: str) -> Html:
    """Text with its own lines."""
    return f'<pre tabindex="0">{text(value)}</pre>'


def marked_block(spans: Iterable[tuple[bool, object]]) -> Html:
    """Text with its own lines, of which some spans are brought out."""
    inside = "".join(f"<mark>{text(span)}</mark>" if marked else text(span) for marked, span in spans)
    return f'<pre tabindex="0">{inside}</pre>'


def grid(parts: Iterable[Html]) -> Html:
    """Charts beside one another as the width allows."""
    return f'<div class="grid">{"".join(parts)}</div>'


def figure(chart: LineChart, wide: bool = False) -> Html:
    """A line chart with heading and legend.

    Args:
        wide: over the whole page; narrow screens get a drawing of their own, as letters would be too small.
    """
    return f"<figure>{_caption(chart)}{_drawing(chart, wide)}</figure>"


def choice(name: str, charts: Mapping[str, LineChart]) -> Html:
    """One wide chart in up to three versions that the reader switches between; works without scripts.

    Args:
        name: its own in the page; letters only.
        charts: what the switch says -> version.
    """
    buttons = "".join(
        f'<input type="radio" name="{name}" id="{name}{number}"{"" if number else " checked"}>'
        f'<label for="{name}{number}">{text(label)}</label>'
        for number, label in enumerate(charts)
    )
    panes = "".join(f"<div>{_drawing(chart, wide=True)}</div>" for chart in charts.values())
    first = next(iter(charts.values()))
    return f'<figure class="choice">{_caption(first)}{buttons}<div class="panes">{panes}</div></figure>'


def strips(chart: HeatMap) -> Html:
    """A heat map as a table: name, strip of colour, first and last value."""
    prefix = _common_prefix(list(chart.rows))
    lines = []
    for name, row in chart.rows.items():
        known = [value for value in row if value is not None]
        shown = text(name[len(prefix) :]).replace(".", ".<wbr>")  # long names break at their points
        first, last = (short(known[0]), short(known[-1])) if known else ("–", "–")
        lines.append(
            f'<tr title="{text(name)}"><th scope="row">{shown}</th><td>{first}</td>'
            f'<td class="wide">{svg_strip(row, chart.scale)}</td><td>{last}</td></tr>'
        )
    start, end = (short(chart.columns[0]), short(chart.columns[-1])) if chart.columns else ("", "")
    head = f"<th>{text(prefix.rstrip('.'))}</th><th>{chart.x} {start}</th><th></th><th>{chart.x} {end}</th>"
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{text(chart.title)}"><table class="strips">'
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"
    )


def scale_key(scale: str) -> Html:
    """What the colours of the strips mean."""
    shades, ends = (
        (range(-4, 5), ("¼", "4 times the median of its row")) if scale == "relative" else (range(9), ("0", "1"))
    )
    cells = "".join(f'<path class="{scale[0]}{shade}" d="M{place} 0h1v1h-1z"/>' for place, shade in enumerate(shades))
    svg = f'<svg viewBox="0 0 9 1" preserveAspectRatio="none" aria-hidden="true">{cells}</svg>'
    return f'<p class="key">{ends[0]} {svg} {ends[1]}</p>'


def _caption(chart: LineChart) -> Html:
    legend = ""
    if len(named := [line for line in chart.lines if not line.faint]) > 1:
        items = "".join(
            f'<li class="c{line.colour % COLOURS}{" alt" if line.colour >= COLOURS else ""}">{text(line.name)}</li>'
            for line in named
        )
        legend = f'<ul class="legend">{items}</ul>'
    return f"<figcaption><b>{text(chart.title)}</b> <span>{text(chart.y)}</span>{legend}</figcaption>"


def _drawing(chart: LineChart, wide: bool) -> Html:
    narrow = svg_lines(chart)
    if not wide:
        return narrow
    return f'<div class="if-wide">{svg_lines(chart, 1000, 340)}</div><div class="if-narrow">{narrow}</div>'


def _common_prefix(names: Sequence[str]) -> str:
    """What all names begin with, up to a point."""
    first, last = min(names, default=""), max(names, default="")
    same = next(
        (place for place, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last))
    )
    return first[: first.rfind(".", 0, same) + 1] if len(names) > 1 else ""
