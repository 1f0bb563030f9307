"""Numbers as a person reads them."""

import math


def size(n_bytes: float) -> str:
    """Bytes in the unit that fits."""
    for unit in ("B", "kB", "MB", "GB"):
        if n_bytes < 1000:
            return f"{n_bytes:.3g} {unit}"
        n_bytes /= 1000
    return f"{n_bytes:.3g} TB"


def binary(n_bytes: float) -> str:
    """Bytes in units of 1024, as memory is counted."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if n_bytes < 1024:
            return f"{n_bytes:.1f} {unit}"
        n_bytes /= 1024
    return f"{n_bytes:.1f} TiB"


def duration(seconds: float) -> str:
    """Seconds as h:mm:ss or m:ss."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def short(value: float | None, digits: int = 3) -> str:
    """A number in few characters: 0.00061, 6.1e-5, 12.3, 4.5k, 30M; a dash where there is none."""
    if value is None or not math.isfinite(value):
        return "–"
    for unit, suffix in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        # Rounding can carry into the next unit, hence the comparison of the rounded number.
        if abs(float(f"{value:.{digits}g}")) >= unit:
            return (
                f"{float(f'{value / unit:.{digits}g}'):g}{suffix}" if abs(value) < 1e15 else f"{value:.{digits - 1}e}"
            )
    text = f"{value:.{digits}g}"
    mantissa, _, exponent = text.partition("e")
    return f"{mantissa}e{int(exponent)}" if exponent else text


def count(value: float) -> str:
    """A whole number with separators."""
    return f"{round(value):,}"


def words(name: str) -> str:
    """A measure's name without underscores."""
    return name.replace("_", " ")
