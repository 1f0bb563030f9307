"""The table of a recipe, module by module, in the few lines that a person reads before a training.

backbone.layers.*.mixer.in_proj    nvfp4  0 2 5        modules of one kind, their format, and of which blocks
"""

import re
from collections.abc import Mapping
from itertools import pairwise

_BLOCK = re.compile(r"\.(\d+)(?=\.)")


def decision_lines(formats: Mapping[str, str]) -> list[str]:
    """A line for all modules of one kind that have one format.

    Args:
        formats: module name -> format, as `apply_precision` gives it.
    """
    rows: dict[tuple[str, str], list[int]] = {}
    for name, format in formats.items():
        found = _BLOCK.search(name)
        blocks = rows.setdefault((_BLOCK.sub(".*", name, count=1), format), [])
        blocks += [int(found[1])] if found else []
    wide, long = (max(len(row[column]) for row in rows) for column in (0, 1))
    return [f"{kind:{wide}}  {format:{long}}  {_spans(blocks)}".rstrip() for (kind, format), blocks in rows.items()]


def _spans(numbers: list[int]) -> str:
    """0 2-4 for 0, 2, 3, 4."""
    starts = [0, *(place for place, (one, two) in enumerate(pairwise(numbers), 1) if two != one + 1), len(numbers)]
    parts = [numbers[first:last] for first, last in pairwise(starts)]
    return " ".join(f"{part[0]}-{part[-1]}" if len(part) > 1 else f"{part[0]}" for part in parts if part)
