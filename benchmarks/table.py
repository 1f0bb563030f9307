"""The lines of an area for people: a row for each case, the same columns in every area."""

from collections.abc import Iterator, Mapping, Sequence

from benchmarks.case import Line
from benchmarks.pairing import OURS

HEADINGS = ("case", "ours", "against the others", "of the ceiling", "")


def table(lines: Sequence[Line]) -> str:
    """Columns two spaces apart, without those that are empty throughout."""
    rows = [HEADINGS, *map(_row, lines)]
    kept = [column for column in zip(*rows, strict=True) if any(column[1:])]
    widths = [max(map(len, column)) for column in kept]
    shown = (
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in zip(*kept, strict=True)
    )
    return "\n".join(row.rstrip() for row in shown)


def _row(line: Line) -> tuple[str, ...]:
    if reason := line.get("error", line.get("not_measured")):
        return line["case"], "", "", "", f"not measured: {reason}"
    return line["case"], _ours(line), "; ".join(_ratios(line)), _share(line), ", ".join(_rest(line))


def _ours(line: Line) -> str:
    found = []
    if OURS in line.get("seconds", {}):
        found.append(_seconds(line["seconds"][OURS][1]))
    if OURS in line.get("bytes", {}):
        value = line["bytes"][OURS]
        found.append(f"{(value[1] if isinstance(value, list) else value) / 2**20:,.0f} MiB")
    return ", ".join(found)


def _ratios(line: Line) -> Iterator[str]:
    for name, (lower, middle, upper) in line.get("ratio", {}).items():
        yield f"{name} {middle:.2f} x ({lower:.2f} to {upper:.2f}) our time"
    for name, value in line.get("bytes_ratio", {}).items():
        yield f"{name} {value[1] if isinstance(value, list) else value:.2f} x our bytes"


def _share(line: Line) -> str:
    share = line.get("share_of_ceiling", {})
    if not isinstance(share, Mapping):
        return f"{share:.0%}"
    return ", ".join(f"{value:.0%}" if name == OURS else f"{name} {value:.0%}" for name, value in share.items())


def _rest(line: Line) -> Iterator[str]:
    for name, value in line.get("tokens_per_second", {}).items():
        yield f"{name} {value:,.4g} tokens/s"
    for name, value in line.get("figures", {}).items():
        yield f"{name.replace('_', ' ')} {value:,.4g}"
    for name, reason in line.get("skipped", {}).items():
        yield f"without {name}: {reason}"


def _seconds(value: float) -> str:
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if value >= size:
            return f"{value / size:.4g} {unit}"
    return f"{value / 1e-9:.4g} ns"
