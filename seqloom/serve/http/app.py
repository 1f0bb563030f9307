"""The application: OpenAI's API and what watches over it.

    POST /v1/chat/completions  /v1/completions  /v1/responses     GET /v1/models
    POST /tokenize  /detokenize     GET /health  /ready  /metrics  /openapi.json     GET /  the chat page

Bodies are read by pydantic from their bytes, not by FastAPI: so what is no JSON (NaN, halves of characters, deep
nesting, numbers without end) is an error of the client like any other. Work that takes time is done in threads.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

from seqloom.core.errors import ConfigError, DataError
from seqloom.serve.http import page
from seqloom.serve.http.answer_response import AnswerResponse
from seqloom.serve.http.chat import prepare_chat
from seqloom.serve.http.chat_writers import ChatStream, ChatWhole
from seqloom.serve.http.completions import (
    CompletionStream,
    CompletionWhole,
    Texts,
    is_light,
    prepare_completion,
    prompts_of,
)
from seqloom.serve.http.description import describe, described
from seqloom.serve.http.engine_process import Answers, EngineProcess
from seqloom.serve.http.errors import RefusedError, bad
from seqloom.serve.http.guard import OPEN_PATHS, error_body, guard
from seqloom.serve.http.metrics import Metrics
from seqloom.serve.http.model import ServedModel
from seqloom.serve.http.prepared import Defaults, Prepared
from seqloom.serve.http.protocol import ChatBody, CompletionBody, DetokenizeBody, StreamOptions, TokenizeBody
from seqloom.serve.http.responses_body import ResponsesBody, as_chat
from seqloom.serve.http.responses_writers import ResponseWriter

B = TypeVar("B", bound=BaseModel)
_THREADS = 4


class Front:
    """What the routes share."""

    def __init__(self, model: ServedModel, engine: EngineProcess, defaults: Defaults) -> None:
        self.model, self.engine, self.defaults = model, engine, defaults
        self._threads = ThreadPoolExecutor(_THREADS, "prepare")

    async def begin(
        self, body: Any, count: int, prepare: Callable[[Any, ServedModel, int, Defaults], Prepared]
    ) -> tuple[Prepared, Answers]:
        """Take a place, make a request ready, and hand it to the engine.

        Raises:
            RefusedError: there is no room, or the request cannot be answered as it is asked for.
        """
        self.model.check_name(body.model)
        arguments = (body, self.model, self.engine.capacity, self.defaults)
        with self.engine.place(count):
            try:
                if is_light(body):  # a thread would take longer
                    prepared = prepare(*arguments)
                else:
                    prepared = await asyncio.get_running_loop().run_in_executor(self._threads, prepare, *arguments)
            except (ConfigError, DataError) as error:
                raise bad(str(error)) from None
            return prepared, self.engine.submit(prepared.requests)


def application(
    model: ServedModel, engine: EngineProcess, defaults: Defaults, *, key: str | None = None,
    max_body_bytes: int = 16 << 20, idle_seconds: float = 30.0,
) -> FastAPI:  # fmt: skip
    """The FastAPI application; its engine runs from startup to shutdown."""

    @asynccontextmanager
    async def lifespan(_: Any) -> AsyncIterator[None]:
        await engine.start()
        yield
        await engine.stop()

    app = FastAPI(title="seqloom", lifespan=lifespan, docs_url=None, redoc_url=None)
    files = page.page_files()
    guard(app, key, max_body_bytes=max_body_bytes, idle_seconds=idle_seconds, open_paths=(*OPEN_PATHS, *files))
    describe(app, [ChatBody, CompletionBody, ResponsesBody, TokenizeBody, DetokenizeBody])
    _handle_errors(app, engine.metrics)
    _add_answers(app, Front(model, engine, defaults))
    _add_facts(app, model, engine)
    for path, (media_type, content) in files.items():
        _add_file(app, path, media_type, content)
    return app


def _add_answers(app: FastAPI, front: Front) -> None:
    model = front.model

    @app.post("/v1/chat/completions", **described(ChatBody))
    async def chat_completions(request: Request) -> Response:
        front.engine.check_room()
        body = await read(request, ChatBody)
        prepared, answers = await front.begin(body, body.n or 1, prepare_chat)
        choices = prepared.choices()
        if not body.stream:
            return AnswerResponse(answers, ChatWhole(model, choices, logprobs=bool(body.logprobs)))
        asked = body.stream_options or StreamOptions()
        writer = ChatStream(
            model, choices, logprobs=bool(body.logprobs), with_usage=asked.include_usage,
            usage_so_far=asked.continuous_usage_stats,
        )  # fmt: skip
        return AnswerResponse(answers, writer)

    @app.post("/v1/completions", **described(CompletionBody))
    async def completions(request: Request) -> Response:
        front.engine.check_room()
        body = await read(request, CompletionBody)
        prepared, answers = await front.begin(body, len(prompts_of(body)) * (body.n or 1), prepare_completion)
        texts = Texts(model, body, prepared)
        if not body.stream:
            return AnswerResponse(answers, CompletionWhole(texts))
        usage = bool(body.stream_options and body.stream_options.include_usage)
        return AnswerResponse(answers, CompletionStream(texts, with_usage=usage))

    @app.post("/v1/responses", **described(ResponsesBody))
    async def responses(request: Request) -> Response:
        front.engine.check_room()
        body = await read(request, ResponsesBody)
        prepared, answers = await front.begin(as_chat(body), 1, prepare_chat)
        (choice,) = prepared.choices()
        return AnswerResponse(answers, ResponseWriter(model, body, choice, stream=bool(body.stream)))

    @app.post("/tokenize", **described(TokenizeBody))
    async def tokenize(request: Request) -> Response:
        body = await read(request, TokenizeBody)
        model.check_name(body.model)
        ids = await run_in_threadpool(_tokens, body, model)
        return JSONResponse({"tokens": ids, "count": len(ids), "max_model_len": front.engine.capacity})

    @app.post("/detokenize", **described(DetokenizeBody))
    async def detokenize(request: Request) -> Response:
        body = await read(request, DetokenizeBody)
        model.check_name(body.model)
        if max(body.tokens, default=0) >= model.tokenizer.size:
            raise bad(f"tokens: {max(body.tokens)} is no token id; the last is {model.tokenizer.size - 1}", "tokens")
        text = await run_in_threadpool(model.tokenizer.decode, body.tokens, specials=True)
        return JSONResponse({"prompt": text})


def _add_facts(app: FastAPI, model: ServedModel, engine: EngineProcess) -> None:
    began = int(time.time())

    def facts() -> dict[str, Any]:
        shown = {"id": model.name, "object": "model", "created": began, "owned_by": "seqloom"}
        return {
            **shown,
            "max_model_len": engine.capacity,
            "thinking": model.thinks,
            "chat": model.template is not None,
        }

    @app.get("/v1/models")
    async def models() -> Any:
        return {"object": "list", "data": [facts()]}

    @app.get("/v1/models/{name:path}")
    async def one_model(name: str) -> Any:
        model.check_name(name)
        return facts()

    @app.get("/health")
    async def health() -> Any:
        return {"status": "ok"}

    @app.get("/ready")
    async def ready() -> Response:
        return JSONResponse({"status": engine.state}, 200 if engine.state == "ready" else 503)

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(engine.metrics.written(), media_type="text/plain; version=0.0.4; charset=utf-8")


def _add_file(app: FastAPI, path: str, media_type: str, content: bytes) -> None:
    async def file() -> Response:
        return Response(content, media_type=media_type, headers=page.HEADERS)

    app.get(path, include_in_schema=False)(file)


def _handle_errors(app: FastAPI, metrics: Metrics) -> None:
    @app.exception_handler(RefusedError)
    async def refused(_: Request, error: RefusedError) -> Response:
        if error.status in (400, 404):
            metrics.requests.labels("invalid").inc()
        return JSONResponse(error.body, error.status, error.headers)

    @app.exception_handler(HTTPException)
    async def plain(_: Request, error: HTTPException) -> Response:
        return JSONResponse(error_body(error.status_code, str(error.detail)), error.status_code, error.headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> Response:
        return JSONResponse(error_body(400, "a path or query that is not known"), 400)

    @app.exception_handler(Exception)
    async def broken(_: Request, error: Exception) -> Response:
        return JSONResponse(error_body(500, f"a slip of the server: {type(error).__name__}"), 500)


async def read(request: Request, kind: type[B]) -> B:
    """The body of a request.

    Raises:
        RefusedError: it is not what the route reads; the message names the first field that is wrong.
    """
    data = await request.body()
    try:
        return kind.model_validate_json(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"] if not _is_branch(part))
        raise bad(f"{where}: {first['msg']}"[:500] if where else first["msg"][:500], where[:200] or None) from None
    except (RecursionError, ValueError) as error:
        raise bad(f"the body cannot be read: {error}"[:200]) from None


def _is_branch(part: object) -> bool:
    """Whether a part of a place in a body is pydantic's name for one of several types."""
    return isinstance(part, str) and ("[" in part or part in ("str", "int", "float", "bool", "constrained-str"))


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
