"""A client of the speech server that sends sound as fast as it would be spoken."""

import json
import time
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from seqloom.core.errors import ConfigError, DataError
from seqloom.core.extras import require
from seqloom.data.audio import Samples

PIECE_SECONDS = 0.1


def listen(
    url: str, sound: Iterable[Samples], rate: int, *, key: str | None = None, real_time: bool = True
) -> Iterator[dict[str, Any]]:
    """What the server says to a stream, as it comes.

    Args:
        url: ws://HOST:PORT/v1/audio/stream
        sound: mono, between -1 and 1, in pieces of any size.
        rate: its samples per second.
        real_time: wait between pieces; a microphone does that by itself.
    Raises:
        ConfigError: there is no such server, or it wants a key.
        DataError: the server closed the stream with an error.
    """
    import threading

    require("serve", "websockets")
    from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidURI
    from websockets.sync.client import connect

    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    try:
        socket = connect(url, additional_headers=headers, proxy=None)
    except (OSError, InvalidURI, InvalidHandshake) as error:
        raise ConfigError(f"--url {url}: no speech server answers there: {error}") from error
    failure: list[Exception] = []

    def send() -> None:
        try:
            socket.send(json.dumps({"type": "start", "sample_rate": rate}))
            begun, sent = time.monotonic(), 0
            for piece in _pieces(sound, round(PIECE_SECONDS * rate)):
                socket.send((np.clip(piece, -1, 1) * 32767).astype("<i2").tobytes())
                sent += len(piece)
                if real_time:
                    time.sleep(max(0.0, begun + sent / rate - time.monotonic()))
            socket.send(json.dumps({"type": "end"}))
        except ConnectionClosed:
            pass  # why it is closed, the other side of this conversation says
        except Exception as error:
            failure.append(error)
            socket.close()

    sender = threading.Thread(target=send, daemon=True)
    with socket:
        sender.start()
        for text in socket:
            message = json.loads(text)
            if message["type"] == "error":
                raise DataError(f"{url}: {message['code']}: {message['message']}")
            yield message
            if message["type"] == "end":
                break
    sender.join(1.0)
    if failure:
        raise failure[0]


def _pieces(sound: Iterable[Samples], size: int) -> Iterator[Samples]:
    for block in sound:
        for start in range(0, len(block), size):
            yield block[start : start + size]
