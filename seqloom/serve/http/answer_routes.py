"""The routes that clients ask most, as plain ASGI before the application: no layer stands between body and engine.

Bodies are read by pydantic from their bytes: so what is no JSON (NaN, halves of characters, deep nesting, numbers
without end) is an error of the client like any other. Work that takes time is done in threads.
"""

import asyncio
import sys
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from starlette.exceptions import HTTPException

from seqloom.core.errors import ConfigError, DataError
from seqloom.serve.http.answer_response import Writer, send_answer
from seqloom.serve.http.chat import prepare_chat, quick_text
from seqloom.serve.http.chat_writers import ChatStream, ChatWhole
from seqloom.serve.http.completions import (
    CompletionStream,
    CompletionWhole,
    Texts,
    is_light,
    prepare_completion,
    prompts_of,
)
from seqloom.serve.http.engine_process import EngineProcess
from seqloom.serve.http.errors import RefusedError, bad
from seqloom.serve.http.guard import Message, Receive, Send, error_body, respond
from seqloom.serve.http.model import ServedModel
from seqloom.serve.http.prepared import Defaults, Prepared
from seqloom.serve.http.protocol import ChatBody, CompletionBody, DetokenizeBody, StreamOptions, TokenizeBody
from seqloom.serve.http.responses_body import InputTokensBody, ResponsesBody, as_chat
from seqloom.serve.http.responses_writers import ResponseWriter
from seqloom.serve.http.updates import Answers

B = TypeVar("B", bound=BaseModel)
_THREADS = 4
_CHOICES = ("NamedChoice", "AllowedChoice", "FlatChoice", "FlatAllowed")
_BRANCHES = ("str", "int", "float", "bool", "constrained-str", *_CHOICES)
_WORDS = {"extra_forbidden": "is not known here", "none_required": "cannot be used here; leave it out"}
"""In place of pydantic's, by the kind of its error."""

BODIES: dict[str, type[BaseModel]] = {
    "/v1/chat/completions": ChatBody,
    "/v1/completions": CompletionBody,
    "/v1/responses": ResponsesBody,
    "/v1/responses/input_tokens": InputTokensBody,
    "/tokenize": TokenizeBody,
    "/detokenize": DetokenizeBody,
}
"""What each of the routes reads."""
ANSWERED = ("/v1/chat/completions", "/v1/completions", "/v1/responses")
"""Those that the engine has to do with."""


class AnswerRoutes:
    """
    Args:
        app: answers all else.
    """

    def __init__(self, app: Any, model: ServedModel, engine: EngineProcess, defaults: Defaults) -> None:
        self._app, self._model, self._engine, self._defaults = app, model, engine, defaults
        self._threads = ThreadPoolExecutor(_THREADS, "prepare")
        self._routes: dict[str, Callable[[Any], Awaitable[tuple[Answers, Writer] | dict[str, Any]]]] = {
            "/v1/chat/completions": self._chat,
            "/v1/completions": self._complete,
            "/v1/responses": self._respond,
            "/v1/responses/input_tokens": self._count,
            "/tokenize": self._tokenize,
            "/detokenize": self._detokenize,
        }

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        path = scope.get("path")
        if scope["type"] != "http" or path not in self._routes:
            await self._app(scope, receive, send)
            return
        try:
            if scope["method"] != "POST":
                await respond(send, 405, error_body(405, "Method Not Allowed"), {"allow": "POST"})
                return
            if path in ANSWERED:
                self._engine.check_room()
            if (data := await _whole(receive)) is None:
                return
            found = await self._routes[path](read(data, BODIES[path]))
        except RefusedError as error:
            if error.status in (400, 404):
                self._engine.metrics.requests.labels("invalid").inc()
            await respond(send, error.status, error.body, error.headers)
        except HTTPException as error:
            await respond(send, error.status_code, error_body(error.status_code, str(error.detail)))
        except Exception as error:
            await respond(send, 500, error_body(500, f"a slip of the server: {type(error).__name__}"))
            raise
        else:
            if isinstance(found, dict):
                await respond(send, 200, found)
            else:
                await send_answer(*found, receive, send)

    async def _chat(self, body: ChatBody) -> tuple[Answers, Writer]:
        prepared, answers = await self._begin(body, body.n or 1, prepare_chat)
        choices = prepared.choices()
        if not body.stream:
            return answers, ChatWhole(self._model, choices, logprobs=bool(body.logprobs))
        asked = body.stream_options or StreamOptions()
        return answers, ChatStream(
            self._model, choices, logprobs=bool(body.logprobs), with_usage=asked.include_usage,
            usage_so_far=asked.continuous_usage_stats,
        )  # fmt: skip

    async def _complete(self, body: CompletionBody) -> tuple[Answers, Writer]:
        prepared, answers = await self._begin(body, len(prompts_of(body)) * (body.n or 1), prepare_completion)
        texts = Texts(self._model, body, prepared)
        if not body.stream:
            return answers, CompletionWhole(texts)
        asked = body.stream_options or StreamOptions()
        return answers, CompletionStream(
            texts, with_usage=asked.include_usage, usage_so_far=asked.continuous_usage_stats
        )

    async def _respond(self, body: ResponsesBody) -> tuple[Answers, Writer]:
        prepared, answers = await self._begin(as_chat(body), 1, prepare_chat)
        (choice,) = prepared.choices()
        return answers, ResponseWriter(self._model, body, choice, stream=bool(body.stream))

    async def _count(self, body: ResponsesBody) -> dict[str, Any]:
        """A prompt may be counted that is too long to be answered."""
        self._model.check_name(body.model)
        prepared = await self._in_thread(prepare_chat, as_chat(body), self._model, sys.maxsize, self._defaults)
        return {"object": "response.input_tokens", "input_tokens": len(prepared.requests[0]["prompt"])}

    async def _tokenize(self, body: TokenizeBody) -> dict[str, Any]:
        self._model.check_name(body.model)
        ids = await self._in_thread(_tokens, body, self._model)
        return {"tokens": ids, "count": len(ids), "max_model_len": self._engine.capacity}

    async def _detokenize(self, body: DetokenizeBody) -> dict[str, Any]:
        self._model.check_name(body.model)
        tokenizer = self._model.tokenizer
        if max(body.tokens, default=0) >= tokenizer.size:
            raise bad(f"tokens: {max(body.tokens)} is no token id; the last is {tokenizer.size - 1}", "tokens")
        return {"prompt": await self._in_thread(lambda: tokenizer.decode(body.tokens, specials=True))}

    async def _begin(
        self, body: Any, count: int, prepare: Callable[[Any, ServedModel, int, Defaults], Prepared]
    ) -> tuple[Prepared, Answers]:
        """Take a place, make a request ready, and hand it to the engine.

        Raises:
            RefusedError: there is no room, or the request cannot be answered as it is asked for.
        """
        self._model.check_name(body.model)
        arguments = (body, self._model, self._engine.capacity, self._defaults)
        with self._engine.place(count):
            try:
                text = await quick_text(body, self._model, self._defaults) if isinstance(body, ChatBody) else None
                if text is not None:
                    prepared = prepare_chat(body, self._model, self._engine.capacity, self._defaults, text)
                elif is_light(body):  # a thread would take longer
                    prepared = prepare(*arguments)
                else:
                    prepared = await self._in_thread(prepare, *arguments)
            except (ConfigError, DataError) as error:
                raise bad(str(error)) from None
            return prepared, self._engine.submit(prepared.requests)

    async def _in_thread(self, work: Callable[..., Any], *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work, *arguments)


async def _whole(receive: Receive) -> bytes | None:
    """A body; None if the client is gone."""
    parts = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        parts.append(message.get("body", b""))
        if not message.get("more_body", False):
            return b"".join(parts)


def read(data: bytes, kind: type[B]) -> B:
    """A body as it should be.

    Raises:
        RefusedError: it is not what the route reads; the message names a field that is wrong.
    """
    try:
        return kind.model_validate_json(data)
    except ValidationError as error:
        where, message = _wrong(error)
        raise bad(f"{where}: {message}"[:500] if where else message[:500], where[:200] or None) from None
    except (RecursionError, ValueError) as error:
        raise bad(f"the body cannot be read: {error}"[:200]) from None


def _wrong(error: ValidationError) -> tuple[str, str]:
    """The first wrong field and what it should be; of several types that it may have, those that come nearest."""
    found = error.errors(include_url=False, include_context=False, include_input=False)
    places = [[str(part) for part in each["loc"] if not _is_branch(part)] for each in found]
    telling = [
        place
        for each, place in zip(found, places, strict=True)
        if each["type"] == "too_long" or (place[-1:] == ["type"] and len(place) == len(each["loc"]))
    ]  # too many of what one branch reads; a kind that is unknown, whose other fields are another's
    field = [place for place in telling or places if place[:1] == places[0][:1]]
    nearest = max(field or places, key=len)
    said = {
        _WORDS.get(each["type"], each["msg"]): None
        for each, place in zip(found, places, strict=True)
        if place == nearest
    }
    return ".".join(nearest), ", or ".join(said)


def _is_branch(part: object) -> bool:
    """Whether a part of a place in a body is pydantic's name for one of several types."""
    return isinstance(part, str) and ("[" in part or part in _BRANCHES)


def _tokens(body: TokenizeBody, model: ServedModel) -> list[int]:
    if (body.prompt is None) == (body.messages is None):
        raise bad("give one of prompt, messages", "prompt")
    if body.prompt is not None:
        bos = [model.tokenizer.bos] if body.add_special_tokens and model.tokenizer.bos is not None else []
        return [*bos, *model.tokenizer.encode(body.prompt)]
    assert body.messages is not None
    tools = [tool.model_dump(exclude_none=True) for tool in body.tools or ()] or None
    options = body.chat_template_kwargs or {}
    text = model.render(body.messages, tools, options, generate=body.add_generation_prompt)
    return model.tokenizer.encode(text, specials=True)
