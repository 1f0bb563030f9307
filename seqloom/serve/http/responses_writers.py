"""Answers in the form of OpenAI's Responses API: items of output, and events while they grow.

response.created · response.in_progress
of each item:  output_item.added · [content_part.added] · its deltas · its done · [content_part.done] · output_item.done
response.completed, or response.incomplete (no tokens left), or response.failed
"""

import json
import secrets
import time
from typing import Any

from seqloom.serve.http.answers import Choice, usage
from seqloom.serve.http.errors import RefusedError
from seqloom.serve.http.model import ServedModel
from seqloom.serve.http.responses_body import ResponsesBody
from seqloom.serve.http.responses_logprobs import Logprob, MessageLogprobs
from seqloom.serve.http.updates import Update

Event = tuple[str, dict[str, Any]]
"""(type without "response.", fields)"""

_PARTS = {"reasoning_content": "reasoning_text", "content": "output_text"}


class ResponseWriter:
    """The whole answer, or with `stream` all events on the way to it."""

    def __init__(self, model: ServedModel, body: ResponsesBody, choice: Choice, *, stream: bool) -> None:
        self.media_type = "text/event-stream" if stream else "application/json"
        self._choice, self._stream = choice, stream
        self._logprobs = MessageLogprobs(model) if body.wants_logprobs else None
        self._response = _response(model, body)
        self._items: list[dict[str, Any]] = self._response["output"]
        self._open: str | None = None
        """What the last item is, while it grows: a kind of text, or "tool_calls"."""
        self._sequence = 0
        self._begun = False

    @property
    def done(self) -> bool:
        return self._choice.finish is not None

    def feed(self, choice: int, update: Update) -> bytes:
        deltas = list(self._choice.feed(update))
        if self._logprobs is not None:
            self._logprobs.feed(update)
        events: list[Event] = []
        if not self._begun:
            self._begun = True
            events += [("created", {"response": self._shown()}), ("in_progress", {"response": self._shown()})]
        for field, value in deltas:
            if field == "tool_calls":
                for change in value:
                    events += self._called(change)
            else:
                events += self._said(field, value)
        return self._written(events)

    def end(self) -> bytes:
        events = self._closed()
        complete = self._choice.finish != "length"
        self._response["status"] = "completed" if complete else "incomplete"
        if not complete:
            self._response["incomplete_details"] = {"reason": "max_output_tokens"}
            if self._items:
                self._items[-1]["status"] = "incomplete"
        self._response["usage"] = _usage(self._choice)
        if not self._stream:
            return json.dumps(self._response).encode()
        return self._written([*events, (self._response["status"], {"response": self._response})])

    def failed(self, error: RefusedError) -> bytes:
        self._response |= {"status": "failed", "error": {"code": "server_error", "message": str(error)}}
        return self._written([("failed", {"response": self._response})])

    def _said(self, field: str, text: str) -> list[Event]:
        events, part = [], _PARTS[field]
        if self._open != field:
            events += self._closed()
            self._open = field
            kind = (
                {"type": "message", "role": "assistant"} if field == "content" else {"type": "reasoning", "summary": []}
            )
            name = _id("msg" if field == "content" else "rs")
            events += self._added({"id": name, **kind, "status": "in_progress", "content": []})
            events.append(("content_part.added", self._at({"content_index": 0, "part": _part(part, "")})))
            self._items[-1]["content"] = [_part(part, "")]
        shown, logprobs = self._items[-1]["content"][0], {}
        shown["text"] += text
        if field == "content":
            found: list[Logprob] = self._logprobs.said(text) if self._logprobs is not None else []
            shown["logprobs"] += found
            logprobs = {"logprobs": found}
        events.append((f"{part}.delta", self._at({"content_index": 0, "delta": text, **logprobs})))
        return events

    def _called(self, change: dict[str, Any]) -> list[Event]:
        events, function = [], change["function"]
        if "id" in change:
            events += self._closed()
            self._open = "tool_calls"
            call = {"type": "function_call", "status": "in_progress", "call_id": change["id"], "name": function["name"]}
            events += self._added({"id": _id("fc"), **call, "arguments": ""})
        if function["arguments"]:
            self._items[-1]["arguments"] += function["arguments"]
            events.append(("function_call_arguments.delta", self._at({"delta": function["arguments"]})))
        return events

    def _added(self, item: dict[str, Any]) -> list[Event]:
        self._items.append(item)
        return [("output_item.added", {"output_index": len(self._items) - 1, "item": dict(item)})]

    def _closed(self) -> list[Event]:
        """The end of the last item, if it is open."""
        if self._open is None:
            return []
        item, open_, events = self._items[-1], self._open, []
        self._open = None
        item["status"] = "completed"
        if open_ == "tool_calls":
            if not _whole(item["arguments"]):  # its text comes back in a message
                item["status"] = "incomplete"
            done = {"arguments": item["arguments"], "name": item["name"]}
            events.append(("function_call_arguments.done", self._at(done)))
        else:
            part = item["content"][0]
            logprobs = {"logprobs": part["logprobs"]} if open_ == "content" else {}
            events.append((f"{part['type']}.done", self._at({"content_index": 0, "text": part["text"], **logprobs})))
            events.append(("content_part.done", self._at({"content_index": 0, "part": part})))
        return [*events, ("output_item.done", {"output_index": len(self._items) - 1, "item": item})]

    def _at(self, fields: dict[str, Any]) -> dict[str, Any]:
        return {"item_id": self._items[-1]["id"], "output_index": len(self._items) - 1, **fields}

    def _shown(self) -> dict[str, Any]:
        return {**self._response, "output": []}

    def _written(self, events: list[Event]) -> bytes:
        if not self._stream:
            return b""
        lines = []
        for kind, fields in events:
            shown = {"type": f"response.{kind}", "sequence_number": self._sequence, **fields}
            self._sequence += 1
            lines.append(f"event: response.{kind}\ndata: {json.dumps(shown)}\n\n")
        return "".join(lines).encode()


def _response(model: ServedModel, body: ResponsesBody) -> dict[str, Any]:
    asked = body.model_dump(by_alias=True, exclude_none=True)
    return {
        "id": _id("resp"),
        "object": "response",
        "created_at": int(time.time()),
        "status": "in_progress",
        "background": False,
        "error": None,
        "incomplete_details": None,
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "metadata": asked.get("metadata", {}),
        "model": model.name,
        "output": [],
        "parallel_tool_calls": body.parallel_tool_calls is not False,
        "previous_response_id": None,
        "reasoning": {"effort": None, "summary": None, **asked.get("reasoning", {})},
        "service_tier": "default",
        "store": False,
        "temperature": 1.0 if body.temperature is None else body.temperature,
        "text": {"format": {"type": "text"}, **asked.get("text", {})},
        "tool_choice": asked.get("tool_choice", "auto"),
        "top_logprobs": body.top_logprobs or 0,
        "tools": [{"parameters": None, "strict": False, **tool} for tool in asked.get("tools", [])],
        "top_p": 1.0 if body.top_p is None else body.top_p,
        "truncation": "disabled",
        "usage": None,
    }


def _usage(choice: Choice) -> dict[str, Any]:
    found = usage([choice])
    return {
        "input_tokens": found["prompt_tokens"],
        "input_tokens_details": found["prompt_tokens_details"],
        "output_tokens": found["completion_tokens"],
        "output_tokens_details": found["completion_tokens_details"],
        "total_tokens": found["total_tokens"],
    }


def _part(kind: str, text: str) -> dict[str, Any]:
    more: dict[str, Any] = {"annotations": [], "logprobs": []} if kind == "output_text" else {}
    return {"type": kind, "text": text, **more}


def _whole(arguments: str) -> bool:
    """Whether the arguments of a call are JSON; those of one that was cut short stay open (`tool_calls`)."""
    try:
        json.loads(arguments)
    except ValueError:
        return False
    return True


def _id(kind: str) -> str:
    return f"{kind}_{secrets.token_hex(16)}"
