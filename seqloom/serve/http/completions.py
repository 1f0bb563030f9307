"""Completions of plain text: from the body to requests of the engine, and from their answers to bodies.

A batch of prompts gives n choices for each, in their order. With `echo` the prompt stands before the answer, and its
log-probabilities before those of the answer; `max_tokens: 0` then gives the prompt alone.
"""

import json
import time
from json.encoder import encode_basestring_ascii
from typing import Any

from seqloom.serve.http.answers import Choice, new_id, shown_logprob, usage
from seqloom.serve.http.chat import length
from seqloom.serve.http.drawing import choices, completion_logprobs, sampling
from seqloom.serve.http.errors import RefusedError, bad
from seqloom.serve.http.model import ServedModel
from seqloom.serve.http.prepared import Defaults, Prepared
from seqloom.serve.http.protocol import CompletionBody
from seqloom.serve.http.updates import Update

Prompt = str | list[int]

LIGHT = 1000
"""Characters of a prompt that take no time worth a thread."""


def prompts_of(body: CompletionBody) -> list[Prompt]:
    """The prompts of a batch; most often one."""
    prompt: Any = body.prompt
    return [prompt] if isinstance(prompt, str) or isinstance(prompt[0], int) else prompt


def is_light(body: object) -> bool:
    """Whether next to nothing has to be done for a request: a short prompt without a form for its answer."""
    if not isinstance(body, CompletionBody) or body.structured_outputs is not None:
        return False
    return (isinstance(body.prompt, str) and len(body.prompt) < LIGHT) or isinstance(body.prompt[0], int)


def prepare_completion(body: CompletionBody, model: ServedModel, capacity: int, defaults: Defaults) -> Prepared:
    """
    Raises:
        RefusedError: the request cannot be answered as it is asked for.
    """
    if body.best_of is not None and body.best_of != (body.n or 1):
        raise bad("best_of: only as many answers as n can be made", "best_of")
    if body.max_tokens == 0 and not body.echo:
        raise bad("max_tokens: 0 leaves nothing to answer without echo", "max_tokens")
    progress = bool(body.stream_options and body.stream_options.continuous_usage_stats)
    requests = []
    for prompt in prompts_of(body):
        ids = model.encode(prompt) if isinstance(prompt, str) else prompt
        most = 1 if body.max_tokens == 0 else length(len(ids), body.max_tokens, capacity, defaults, "prompt")
        settings = sampling(body, most, **completion_logprobs(body))
        requests += [
            {"prompt": ids, "sampling": each, "draft": defaults.draft_tokens, "marks": None, "progress": progress}
            for each in choices(settings, body.n or 1)
        ]
    return Prepared(requests=requests)


class Texts:
    """The choices of an answer and their log-probabilities, as far as they have come."""

    def __init__(self, model: ServedModel, body: CompletionBody, prepared: Prepared) -> None:
        self.model, self.body = model, body
        self.choices = [Choice() for _ in prepared.requests]
        self._prompts = [request["prompt"] for request in prepared.requests]
        # With `echo`, offsets count from the client's own text, which the token that begins every text stands before.
        bos = model.tokenizer.bos if body.echo and isinstance(prompts_of(body)[0], str) else None
        self._offsets = [0 if bos is None else -len(model.token_text(bos))] * len(self.choices)

    @property
    def done(self) -> bool:
        return all(choice.finish is not None for choice in self.choices)

    def feed(self, choice: int, update: Update, first: bool) -> tuple[str, dict[str, Any] | None]:
        """What an update adds to a choice: text, and log-probabilities if they were asked for."""
        body = self.body
        said = self.choices[choice].feed(update)
        text = "" if body.max_tokens == 0 else "".join([text for _, text in said])
        if first and body.echo:
            text = self._echo(choice) + text
        if body.logprobs is None:
            return text, None
        tokens: list[tuple[int, Any]] = []
        if first and body.echo:
            tokens += zip(self._prompts[choice], update.get("prompt_logprobs", ()), strict=False)
        if body.max_tokens != 0:
            tokens += zip(update["tokens"], update.get("logprobs", ()), strict=False)
        return text, self._logprobs(choice, tokens)

    def usage(self) -> dict[str, Any]:
        found = usage(self.choices, prompts=len(self.choices) // (self.body.n or 1))
        if self.body.max_tokens == 0:
            found |= {"completion_tokens": 0, "total_tokens": found["prompt_tokens"]}
        return found

    def head(self) -> dict[str, Any]:
        return {
            "id": new_id("cmpl"), "object": "text_completion", "created": int(time.time()), "model": self.model.name,
            "system_fingerprint": self.model.fingerprint,
        }  # fmt: skip

    def _echo(self, choice: int) -> str:
        prompt = prompts_of(self.body)[choice // (self.body.n or 1)]
        return prompt if isinstance(prompt, str) else self.model.tokenizer.decode(prompt, specials=True)

    def _logprobs(self, choice: int, tokens: list[tuple[int, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
        for token, likely in tokens:
            text = self.model.token_text(token)
            found["tokens"].append(text)
            found["text_offset"].append(max(0, self._offsets[choice]))
            self._offsets[choice] += len(text)
            logprob, top = likely
            likely = [(token, logprob), *top]
            known = logprob is not None  # nothing came before the first token of a prompt
            found["token_logprobs"].append(shown_logprob(logprob) if known else None)
            found["top_logprobs"].append({self._name(one): shown_logprob(p) for one, p in likely} if known else None)
        return found

    def _name(self, token: int) -> str:
        """The text of a token, or its bytes where it is a part of a character and other tokens show the same."""
        text = self.model.token_text(token)
        return "bytes:" + repr(self.model.token_bytes(token))[2:-1] if "\ufffd" in text else text


class CompletionWhole:
    """The answer as one JSON object."""

    media_type = "application/json"

    def __init__(self, texts: Texts) -> None:
        self._texts = texts
        self._said: list[list[str]] = [[] for _ in texts.choices]
        self._logprobs: list[dict[str, Any] | None] = [None for _ in texts.choices]

    @property
    def done(self) -> bool:
        return self._texts.done

    def feed(self, choice: int, update: Update) -> bytes:
        text, logprobs = self._texts.feed(choice, update, first=not self._said[choice])
        self._said[choice].append(text)
        if logprobs is not None:
            before = self._logprobs[choice]
            self._logprobs[choice] = {key: (before[key] if before else []) + logprobs[key] for key in logprobs}
        return b""

    def end(self) -> bytes:
        shown = [
            {
                "index": number,
                "text": "".join(self._said[number]),
                "logprobs": self._logprobs[number],
                "finish_reason": choice.finish,
            }
            for number, choice in enumerate(self._texts.choices)
        ]
        return json.dumps({**self._texts.head(), "choices": shown, "usage": self._texts.usage()}).encode()

    def failed(self, error: RefusedError) -> bytes:
        raise AssertionError(error)  # nothing is sent before the end


class CompletionStream:
    """The answer as events."""

    media_type = "text/event-stream"

    def __init__(self, texts: Texts, *, with_usage: bool, usage_so_far: bool) -> None:
        self._texts, self._with_usage, self._usage_so_far = texts, with_usage, usage_so_far
        self._head = "data: " + json.dumps(texts.head())[:-1] + ', "choices": ['
        self._tail = '], "usage": null}\n\n' if with_usage else "]}\n\n"
        self._begun: set[int] = set()

    @property
    def done(self) -> bool:
        return self._texts.done

    def feed(self, choice: int, update: Update) -> bytes:
        text, logprobs = self._texts.feed(choice, update, first=choice not in self._begun)
        self._begun.add(choice)
        finish = self._texts.choices[choice].finish
        if not text and logprobs is None and finish is None:
            return b""
        likely = "null" if logprobs is None else json.dumps(logprobs)
        end = "null" if finish is None else f'"{finish}"'
        shown = f'"text": {encode_basestring_ascii(text)}, "logprobs": {likely}, "finish_reason": {end}'
        tail = f'], "usage": {json.dumps(self._texts.usage())}}}\n\n' if self._usage_so_far else self._tail
        return f'{self._head}{{"index": {choice}, {shown}}}{tail}'.encode()

    def end(self) -> bytes:
        usage = f'{self._head}], "usage": {json.dumps(self._texts.usage())}}}\n\n' if self._with_usage else ""
        return usage.encode() + b"data: [DONE]\n\n"

    def failed(self, error: RefusedError) -> bytes:
        return f"data: {json.dumps(error.body)}\n\ndata: [DONE]\n\n".encode()
