"""Text of a model on its way to a person. A model may write any character; a terminal obeys some of them."""

import re
import sys

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f\x80-\x9f]")


def put(piece: str) -> None:
    """Print a piece of a model's text at once; on a terminal, control characters are shown as pictures."""
    print(_CONTROL.sub(_picture, piece) if sys.stdout.isatty() else piece, end="", flush=True)


def _picture(found: re.Match[str]) -> str:
    code = ord(found[0])
    return chr(0x2400 + code) if code < 0x20 else "\N{SYMBOL FOR DELETE}"
