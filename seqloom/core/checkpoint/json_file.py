"""JSON that nobody here wrote, read strictly.

The standard reader takes the last of two equal keys, NaN for a number, and as much memory as a file likes to cost.
Here each of these is an error with a reason, and what a text may cost is bounded before it is parsed: its values are
counted at the speed of a search, so no file of a permitted size takes more than a second or a few hundred megabytes.
"""

import json
import math
import os
from collections import Counter
from itertools import chain
from pathlib import Path
from typing import Any

from seqloom.core.checkpoint.regular_file import opened, read_into
from seqloom.core.errors import CheckpointError

_DEPTH = 64
_VALUES = 600_000
_DIGITS = 40
_INFINITY_IN = ("time_step_limit", "mamba_dt_limit")
"""Fields of a config.json in which published files write a bare Infinity."""


class _RefusedError(Exception):
    """Why a text is not taken."""


def read_json(path: Path, *, limit: int = 16 << 20, infinity_in: tuple[str, ...] = ()) -> dict[str, Any]:
    """Read a file that holds one JSON object.

    Args:
        limit: most bytes the file may have.
        infinity_in: keys whose value may be or hold Infinity, which is not JSON but stands in published files.
    Raises:
        CheckpointError: the file is missing, no regular file of its folder, too large, not strict JSON, or no object.
    """
    with opened(path) as descriptor:
        size = os.fstat(descriptor).st_size
        if size > limit:
            raise CheckpointError(f"{path}: {size:,} bytes; at most {limit:,} are read here")
        data = bytearray(size)
        read_into(descriptor, memoryview(data), 0)
    return parse_json(data, str(path), infinity_in=infinity_in)


def read_config(path: Path) -> dict[str, Any]:
    """Read the config.json of a model folder, as `read_json`, with the one liberty that published files take."""
    return read_json(path, infinity_in=_INFINITY_IN)


def parse_json(data: bytes | bytearray, source: str, *, infinity_in: tuple[str, ...] = ()) -> dict[str, Any]:
    """Read one JSON object from its bytes; `source` names them in errors, which are those of `read_json`."""
    try:
        values = sum(data.count(mark) for mark in (b",", b"[", b"{"))
        if values > _VALUES:
            raise _RefusedError(f"up to {values:,} values; at most {_VALUES:,} are read here")
        found = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=_without_duplicates,
            parse_int=_bounded_int,
            parse_float=_finite_float,
            parse_constant=_constant,
        )
        if not isinstance(found, dict):
            raise _RefusedError(f"expected an object, found {_KINDS.get(type(found), 'a number')}")
        _check_depth(found)
        if b"Infinity" in data:
            _check_infinity(found, infinity_in)
        if b"\\ud" in data or b"\\uD" in data:
            _check_texts(found)
    except _RefusedError as reason:
        raise CheckpointError(f"{source}: {reason}") from None
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{source}: not a JSON file: not UTF-8 at byte {error.start}") from None
    except ValueError as error:
        raise CheckpointError(f"{source}: not a JSON file: {error}") from None
    except RecursionError:
        raise CheckpointError(f"{source}: nested deeper than {_DEPTH} levels") from None
    except MemoryError:
        raise CheckpointError(f"{source}: does not fit in memory") from None
    return found


def shown(value: Any, most: int = 80) -> str:
    """A foreign value for a message: quoted, without control characters, and never long."""
    text = repr(value[: most + 1] if isinstance(value, str) else value)
    return text if len(text) <= most else f"{text[:most]}…"


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice, _ = Counter(key for key, _ in pairs).most_common(1)[0]
        raise _RefusedError(f"the key {shown(twice)} appears twice")
    return found


def _bounded_int(text: str) -> int:
    if len(text) > _DIGITS:
        raise _RefusedError(f"a whole number of {len(text):,} digits")
    return int(text)


def _finite_float(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise _RefusedError(f"the number {shown(text)} is too large for a float")
    return value


def _constant(text: str) -> float:
    if text == "NaN":
        raise _RefusedError("NaN, which is not JSON")
    return float(text)


def _check_depth(root: dict[str, Any]) -> None:
    """Level by level; only what holds values is looked at, so long lists of numbers cost little."""
    level: list[Any] = [root]
    for _ in range(_DEPTH):
        inner = chain.from_iterable(each.values() if type(each) is dict else each for each in level)
        level = [each for each in inner if type(each) in (dict, list)]
        if not level:
            return
    raise _RefusedError(f"nested deeper than {_DEPTH} levels")


def _check_infinity(value: Any, allowed_in: tuple[str, ...], allowed: bool = False) -> None:
    """Infinity may stand under certain keys, also within lists there."""
    if isinstance(value, dict):
        for key, inner in value.items():
            _check_infinity(inner, allowed_in, key in allowed_in)
    elif isinstance(value, list):
        for inner in value:
            _check_infinity(inner, allowed_in, allowed)
    elif isinstance(value, float) and math.isinf(value) and not allowed:
        raise _RefusedError("Infinity, which is not JSON")


def _check_texts(value: Any) -> None:
    """Texts must be characters; JSON can spell one half of a surrogate pair."""
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            raise _RefusedError(f"half a character in {shown(value)}") from None
    elif isinstance(value, dict | list):
        for inner in chain(value, value.values() if isinstance(value, dict) else ()):
            _check_texts(inner)


_KINDS: dict[type, str] = {list: "a list", str: "a text", bool: "true or false", type(None): "null"}
