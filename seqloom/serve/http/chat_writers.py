"""Bodies of chat completions: the whole answer, or events in the order that strict clients need.

    role · reasoning_content… · content… · tool_calls… · finish_reason     of each choice
    usage, if asked for · [DONE]

All but the text of an event is encoded once for the whole stream.
"""

import json
import time
from typing import Any

from seqloom.serve.http.answers import Choice, new_id, token_logprobs, usage
from seqloom.serve.http.errors import RefusedError
from seqloom.serve.http.model import ServedModel
from seqloom.serve.http.updates import Update

DONE = b"data: [DONE]\n\n"

_json = json.JSONEncoder(separators=(",", ":")).encode


class ChatWhole:
    """The answer as one JSON object."""

    media_type = "application/json"

    def __init__(self, model: ServedModel, choices: list[Choice], *, logprobs: bool) -> None:
        self._model, self._choices = model, choices
        self._logprobs: list[list[Any]] | None = [[] for _ in choices] if logprobs else None

    @property
    def done(self) -> bool:
        return all(choice.finish is not None for choice in self._choices)

    def feed(self, choice: int, update: Update) -> bytes:
        self._choices[choice].feed(update)
        if self._logprobs is not None:
            self._logprobs[choice] += token_logprobs(self._model, update)
        return b""

    def end(self) -> bytes:
        shown = [
            {
                "index": number,
                "message": choice.message(),
                "logprobs": self._logprobs and {"content": self._logprobs[number], "refusal": None},
                "finish_reason": choice.finish,
            }
            for number, choice in enumerate(self._choices)
        ]
        head = _head(self._model, "chat.completion")
        return _json({**head, "choices": shown, "usage": usage(self._choices)}).encode()

    def failed(self, error: RefusedError) -> bytes:
        raise AssertionError(error)  # nothing is sent before the end


class ChatStream:
    """The answer as events.

    Args:
        with_usage: tell in the end what it took.
        usage_so_far: tell it in every event.
    """

    media_type = "text/event-stream"

    def __init__(
        self, model: ServedModel, choices: list[Choice], *, logprobs: bool, with_usage: bool, usage_so_far: bool
    ) -> None:
        self._model, self._choices, self._with_usage, self._usage_so_far = model, choices, with_usage, usage_so_far
        self._logprobs: list[list[Any]] | None = [[] for _ in choices] if logprobs else None
        self._head = "data: " + _json(_head(model, "chat.completion.chunk"))[:-1] + ',"choices":['
        self._tail = ',"usage":null}\n\n' if with_usage else "}\n\n"
        self._begun: set[int] = set()

    @property
    def done(self) -> bool:
        return all(choice.finish is not None for choice in self._choices)

    def feed(self, choice: int, update: Update) -> bytes:
        one, events = self._choices[choice], []
        if self._logprobs is not None:
            self._logprobs[choice] += token_logprobs(self._model, update)
        if one.finish is not None:
            return b""
        deltas = one.feed(update)
        if choice not in self._begun:
            self._begun.add(choice)
            events.append(self._event(choice, '{"role":"assistant","content":""}', "null", "null"))
        for field, value in deltas:
            events.append(self._event(choice, f'{{"{field}":{_json(value)}}}', self._taken(choice), "null"))
        if one.finish is not None:
            events.append(self._event(choice, "{}", self._taken(choice), f'"{one.finish}"'))
        return "".join(events).encode()

    def end(self) -> bytes:
        if not self._with_usage:
            return DONE
        return f'{self._head}],"usage":{_json(usage(self._choices))}}}\n\n'.encode() + DONE

    def failed(self, error: RefusedError) -> bytes:
        return f"data: {_json(error.body)}\n\n".encode() + DONE

    def _event(self, choice: int, delta: str, logprobs: str, finish: str) -> str:
        tail = self._tail
        if self._usage_so_far:
            tail = f',"usage":{_json(usage([one for one in self._choices if one.usage]))}}}\n\n'
        return f'{self._head}{{"index":{choice},"delta":{delta},"logprobs":{logprobs},"finish_reason":{finish}}}]{tail}'

    def _taken(self, choice: int) -> str:
        """The log-probabilities that no event has shown yet."""
        if not self._logprobs or not self._logprobs[choice]:
            return "null"
        found, self._logprobs[choice] = self._logprobs[choice], []
        return _json({"content": found, "refusal": None})


def _head(model: ServedModel, kind: str) -> dict[str, Any]:
    return {
        "id": new_id("chatcmpl"), "object": kind, "created": int(time.time()), "model": model.name,
        "system_fingerprint": model.fingerprint,
    }  # fmt: skip
