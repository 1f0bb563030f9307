"""`seqloom listen`: a recording or a microphone to a speech server, and its words as they come."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import tyro

from seqloom.cli.arguments import parse

if TYPE_CHECKING:
    from seqloom.data.audio import Samples

STANDARD_INPUT = "-"


def main(arguments: list[str]) -> None:
    parse("listen", listen, arguments)


def listen(
    source: tyro.conf.Positional[str],
    *,
    url: str = "ws://127.0.0.1:8000/v1/audio/stream",
    key_file: Path | None = None,
    rate: int = 16000,
) -> None:
    """Send sound to a speech server at the speed of speech and show what it hears.

    The utterance under way is shown on standard error where that is a terminal; finished ones go to standard output.

    Example: seqloom listen talk.wav

    Example: arecord -t raw -f S16_LE -r 16000 | seqloom listen -

    Args:
        source: a recording, or - for raw PCM of 16 bits, mono, from standard input.
        url: the server's address (seqloom serve).
        key_file: a file with the server's key.
        rate: samples per second of standard input.
    """
    from seqloom.cli.serve import read_key
    from seqloom.data.audio import RATE, stream_audio
    from seqloom.systems.deep_speech2.listen import listen as hear

    key = None if key_file is None else read_key("localhost", key_file)
    live = source == STANDARD_INPUT
    sound, speed = (_standard_input(), rate) if live else (stream_audio(Path(source)), RATE)
    shown = sys.stderr.isatty()
    for message in hear(url, sound, speed, key=key, real_time=not live):
        if shown:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
        if message["type"] == "final":
            print(message["text"], flush=True)
        elif message["type"] == "partial" and shown:
            print(message["text"][-100:], end="", file=sys.stderr, flush=True)


def _standard_input() -> "Iterator[Samples]":
    import numpy as np

    left = b""
    with open(sys.stdin.fileno(), "rb", buffering=0, closefd=False) as source:  # gives what there is at once
        while data := source.read(1 << 15):
            data = left + data
            whole = len(data) // 2 * 2
            left = data[whole:]
            yield np.frombuffer(data[:whole], "<i2").astype(np.float32) / np.float32(32768)
