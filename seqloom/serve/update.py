"""What a turn of the engine adds to an answer, as the JSON that goes through the pipe (see `serve.worker`)."""

import dataclasses
import json
from json.encoder import encode_basestring_ascii
from typing import Any

from seqloom.core.errors import ConfigError, DataError


def update(identity: int, request: Any, *, progress: bool) -> str:
    """What is new of a request since the last turn; one that cannot be answered as it is asked for is refused.

    Almost always that is a piece of text and its token, so they are written without the general encoder.

    Args:
        progress: tell what it took so far, which is else told in the end.
    """
    fresh, finish = request.fresh, request.finish_reason
    pieces = ",".join([f'["{channel}",{encode_basestring_ascii(text)}]' for channel, text in fresh.pieces])
    shown = f'{{"id":{identity},"pieces":[{pieces}],"tokens":{fresh.token_ids}'
    found: dict[str, Any] = {}
    for name in ("logprobs", "prompt_logprobs"):
        if choices := getattr(fresh, name):
            found[name] = [(choice.logprob, choice.top) for choice in choices]
    if finish is not None:
        found["finish"] = "refused" if isinstance(request.failure, ConfigError | DataError) else finish
        if request.error is not None:
            found["error"] = request.error
    if progress or finish is not None:
        found["usage"] = dataclasses.asdict(request.usage)
    return f"{shown},{json.dumps(found)[1:]}" if found else shown + "}"
