"""The application: OpenAI's API and what watches over it.

    POST /v1/chat/completions  /v1/completions  /v1/responses  /v1/responses/input_tokens     GET /v1/models
    POST /tokenize  /detokenize     GET /health  /ready  /metrics  /openapi.json     GET /  the chat page

From outside to inside: the guard, the routes that answer (`answer_routes`), and FastAPI for all else. The first two
are plain ASGI, for FastAPI's layers would take longer than all the rest of a request.
"""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

from seqloom.serve.http import page
from seqloom.serve.http.answer_routes import BODIES, AnswerRoutes
from seqloom.serve.http.description import describe
from seqloom.serve.http.engine_process import EngineProcess
from seqloom.serve.http.errors import RefusedError
from seqloom.serve.http.guard import OPEN_PATHS, Guard, error_body
from seqloom.serve.http.model import ServedModel
from seqloom.serve.http.prepared import Defaults


def application(
    model: ServedModel, engine: EngineProcess, defaults: Defaults, *, key: str | None = None,
    max_body_bytes: int = 16 << 20, idle_seconds: float = 30.0,
) -> Guard:  # fmt: skip
    """The whole application; its engine runs from startup to shutdown."""
    answering = AnswerRoutes(facts(model, engine), model, engine, defaults)
    return Guard(
        answering, key=key, max_body_bytes=max_body_bytes, idle_seconds=idle_seconds,
        open_paths=(*OPEN_PATHS, *page.page_files()),
    )  # fmt: skip


def facts(model: ServedModel, engine: EngineProcess) -> FastAPI:
    """What there is to know of the server, and the chat page."""

    @asynccontextmanager
    async def lifespan(_: Any) -> AsyncIterator[None]:
        await engine.start()
        yield
        await engine.stop()
        if model.quick is not None:
            await model.quick.end()

    app = FastAPI(title="seqloom", lifespan=lifespan, docs_url=None, redoc_url=None)
    describe(app, BODIES)
    _handle_errors(app)
    _add_facts(app, model, engine)
    for path, (media_type, content) in page.page_files().items():
        _add_file(app, path, media_type, content)
    return app


def _add_facts(app: FastAPI, model: ServedModel, engine: EngineProcess) -> None:
    began = int(time.time())

    def shown() -> dict[str, Any]:
        return {
            "id": model.name, "object": "model", "created": began, "owned_by": "seqloom",
            "max_model_len": engine.capacity, "thinking": model.thinks, "chat": model.template is not None,
        }  # fmt: skip

    @app.get("/v1/models")
    async def models() -> Any:
        return {"object": "list", "data": [shown()]}

    @app.get("/v1/models/{name:path}")
    async def one_model(name: str) -> Any:
        model.check_name(name)
        return shown()

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


def _handle_errors(app: FastAPI) -> None:
    @app.exception_handler(RefusedError)
    async def refused(_: Request, error: RefusedError) -> Response:
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
