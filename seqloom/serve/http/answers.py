"""One choice of an answer, from updates of the engine to what OpenAI's API shows of it."""

import json
import secrets
from collections.abc import Iterator, Sequence
from typing import Any

from seqloom.serve.http.errors import RefusedError
from seqloom.serve.http.model import ServedModel
from seqloom.serve.http.updates import Update
from seqloom.serve.tool_calls import CallDelta, ToolCallParser

Delta = tuple[str, Any]
"""("reasoning_content" | "content", text) or ("tool_calls", list of changes of calls)."""

LEAST = -9999.0
"""What OpenAI's API says of a token that cannot come: JSON has no infinity."""
FINISH = {"stop": "stop", "eos": "stop", "length": "length"}


class Choice:
    """Texts by channel and calls of tools; whoever streams takes what `feed` gives, the others the sum."""

    def __init__(self, calls: ToolCallParser | None = None, *, one_call: bool = False) -> None:
        """
        Args:
            calls: a parser of tool calls; None where no tools were offered.
            one_call: the answer ends with its first call.
        """
        self._said: dict[str, list[str]] = {"reasoning_content": [], "content": []}
        self.calls: list[dict[str, Any]] = []
        self.finish: str | None = None
        self.usage: dict[str, int] = {}
        self._parser, self._one_call = calls, one_call
        self._thought, self._breaks = False, ""

    def feed(self, update: Update) -> list[Delta]:
        """What an update adds.

        Raises:
            RefusedError: the engine did not take the request, or failed.
        """
        if "usage" in update:
            self.usage = update["usage"]
        found: list[Delta] = []
        for channel, text in update["pieces"]:
            if channel == "tool" and self._parser is not None:
                found += self._called(self._parser.push(text))
            elif text:
                found += self._say("reasoning_content" if channel == "reasoning" else "content", text)
        if (finish := update.get("finish")) is None:
            return found
        if finish in ("error", "refused"):
            status = 400 if finish == "refused" else 503
            message = update.get("error") or "the answer failed"
            raise RefusedError(status, message, retry_after=None if status == 400 else 2)
        if self._parser is not None:
            found += self._called(self._parser.flush())
        self.finish = self.finish or FINISH.get(finish, "stop")
        if self.finish == "stop" and any(map(_is_whole, self.calls)):
            self.finish = "tool_calls"
        return found

    def message(self) -> dict[str, Any]:
        """The whole message of an assistant; a call that broke off is the text that it was."""
        calls = [call for call in self.calls if _is_whole(call)]
        content, thoughts = ("".join(self._said[field]) for field in ("content", "reasoning_content"))
        found: dict[str, Any] = {
            "role": "assistant",
            "content": content or (None if calls else ""),
            "refusal": None,
        }
        if thoughts:
            found["reasoning_content"] = thoughts
        if calls:
            found["tool_calls"] = calls
        return found

    def _say(self, field: str, text: str) -> list[Delta]:
        """A piece of text; the line breaks that templates put around thoughts belong to neither channel."""
        if field == "reasoning_content":
            text = self._breaks + text
            self._breaks = ""
            if not self._said[field]:
                text = text.lstrip("\n")
            shown = text.rstrip("\n")
            text, self._breaks, self._thought = shown, text[len(shown) :], True
        elif self._thought and not self._said[field]:
            text = text.lstrip("\n")
        if not text:
            return []
        self._said[field].append(text)
        return [(field, text)]

    def _called(self, changes: list[CallDelta | str]) -> Iterator[Delta]:
        """Calls in the form of the API: the first piece of one has its name, the others add to its arguments."""
        shown = []
        for change in changes:
            if isinstance(change, str):  # what looked like a call and is none
                if change.strip():
                    yield from self._say("content", change)
                continue
            if self._one_call and change.index > 0:
                self.finish = "tool_calls"
                break
            if change.name is not None:
                call = {"name": change.name, "arguments": change.arguments}
                self.calls.append({"id": new_id("call"), "type": "function", "function": call})
                shown.append({"index": change.index, **self.calls[change.index], "function": dict(call)})
            else:
                self.calls[change.index]["function"]["arguments"] += change.arguments
                shown.append({"index": change.index, "function": {"arguments": change.arguments}})
        if shown:
            yield "tool_calls", shown


def _is_whole(call: dict[str, Any]) -> bool:
    try:
        return isinstance(json.loads(call["function"]["arguments"]), dict)
    except ValueError:
        return False


def new_id(kind: str) -> str:
    """A name for something that nobody else uses."""
    return f"{kind}_{secrets.token_hex(12)}" if kind == "call" else f"{kind}-{secrets.token_hex(12)}"


def usage(choices: Sequence[Choice], prompts: int = 1) -> dict[str, Any]:
    """What an answer took.

    Args:
        prompts: the choices answer so many prompts, each as many times; a prompt is counted once.
    """
    each = max(1, len(choices) // prompts)

    def total(name: str, step: int = 1) -> int:
        return sum(choice.usage.get(name, 0) for choice in choices[::step])

    prompt_tokens, answer_tokens = total("prompt_tokens", each), total("completion_tokens")
    accepted = total("accepted_tokens")
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": answer_tokens,
        "total_tokens": prompt_tokens + answer_tokens,
        "prompt_tokens_details": {"cached_tokens": total("cached_tokens", each)},
        "completion_tokens_details": {
            "reasoning_tokens": total("reasoning_tokens"),
            "accepted_prediction_tokens": accepted,
            "rejected_prediction_tokens": total("drafted_tokens") - accepted,
        },
    }


def token_logprobs(model: ServedModel, update: Update) -> list[dict[str, Any]]:
    """Log-probabilities of an update's tokens in the form of chat completions."""
    return [
        {**_shown(model, token, logprob), "top_logprobs": [_shown(model, *likely) for likely in top]}
        for token, (logprob, top) in zip(update["tokens"], update.get("logprobs", ()), strict=False)
    ]


def shown_logprob(logprob: float | None) -> float:
    """A log-probability that JSON can hold; 0 for a token that was forced."""
    return 0.0 if logprob is None else max(logprob, LEAST)


def _shown(model: ServedModel, token: int, logprob: float | None) -> dict[str, Any]:
    text = model.token_text(token)
    return {"token": text, "logprob": shown_logprob(logprob), "bytes": list(model.token_bytes(token))}
