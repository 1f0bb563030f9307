"""Writes pictures as a film: GIF through Pillow (extra rl), or an animated PNG, which needs nothing and loses nothing.

An animated PNG (APNG) is a PNG with a chunk that counts the pictures, one before each that says how long it stays, and
the pictures' compressed rows; programs that know only PNG show the first picture.
"""

import struct
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from seqloom.core.checkpoint import commit
from seqloom.core.errors import ConfigError
from seqloom.core.extras import require
from seqloom.rl.environment import Frame

MILLISECONDS = 80
"""For which a picture stays."""
SUFFIXES = (".gif", ".png")


def check_path(path: Path) -> None:
    """
    Raises:
        ConfigError: the ending is not that of a film, or the package for it is missing.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise ConfigError(f"{path}: a film's name ends in .gif, or in .png for an animated PNG")
    if path.suffix.lower() == ".gif":
        require("rl", "PIL.Image")


def write_film(pictures: Iterable[Frame], path: Path) -> None:
    """
    Args:
        pictures: of one size, at least one.
    Raises:
        ConfigError: the file cannot be written, or Pillow is needed and missing.
    """
    check_path(path)
    try:
        if path.suffix.lower() == ".gif":
            _write_gif(pictures, path)
        else:
            commit.write_file(path, animated_png(pictures))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error.strerror or error}") from error


def animated_png(pictures: Iterable[Frame]) -> bytes:
    """The file."""
    parts, count, sequence = list[bytes](), 0, 0
    for picture in pictures:
        height, width = picture.shape[:2]
        if not count:
            head = _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
        control = struct.pack(">IIIIIHHBB", sequence, width, height, 0, 0, MILLISECONDS, 1000, 0, 0)
        parts.append(_chunk(b"fcTL", control))
        data = zlib.compress(b"".join(b"\0" + row.tobytes() for row in picture))
        parts.append(_chunk(b"fdAT", struct.pack(">I", sequence + 1) + data) if count else _chunk(b"IDAT", data))
        sequence, count = sequence + (2 if count else 1), count + 1
    assert count
    return b"".join(
        [b"\x89PNG\r\n\x1a\n", head, _chunk(b"acTL", struct.pack(">II", count, 0)), *parts, _chunk(b"IEND", b"")]
    )


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _write_gif(pictures: Iterable[Frame], path: Path) -> None:
    image = require("rl", "PIL.Image")
    opened: Iterator[object] = (image.fromarray(picture) for picture in pictures)
    first = next(opened)
    first.save(path, save_all=True, append_images=opened, duration=MILLISECONDS, loop=0)  # type: ignore[attr-defined]
