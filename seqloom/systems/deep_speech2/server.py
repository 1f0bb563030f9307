"""The speech server: streams over WebSockets, recordings over HTTP in the shape of OpenAI's API.

    WS   /v1/audio/stream             see `conversation.py`
    POST /v1/audio/transcriptions     multipart: file, model, response_format
    GET  /v1/models  /health  /ready  /metrics

One thread hears everybody (`dispatch.py`); the event loop only carries messages. Without a key the server answers to
names of this machine alone, so no page in a browser reaches it through a name of its own.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any

from seqloom.core.errors import ConfigError, DataError
from seqloom.core.extras import require
from seqloom.serve.http.guard import address, error_body, guard, listen, patient
from seqloom.systems.deep_speech2.service import BusyError, ServerConfig, Service
from seqloom.systems.deep_speech2.subtitles import to_srt, to_vtt
from seqloom.systems.deep_speech2.transcribe import Recogniser
from seqloom.systems.deep_speech2.transcript import Transcript

FORMATS = ("json", "text", "srt", "vtt", "verbose_json")


def serve(run: Path, host: str, port: int, key: str | None, settings: ServerConfig) -> None:
    """Serve until interrupted.

    Args:
        run: a run or model folder whose model hears the past only.
        port: 0 takes a free one.
        key: what clients must send as a bearer token; needed unless the host is this machine.
    Raises:
        ConfigError: the model cannot stream, a package is absent, or the address cannot be had.
    """
    uvicorn = require("serve", "uvicorn")
    require("serve", "websockets")
    service = Service(Recogniser(run), run.resolve().name, settings)
    app = application(service, key)
    listening = listen(host, port)
    print(f"serving {run} at {address(host, listening)}  (Ctrl-C stops)", flush=True)
    config = uvicorn.Config(
        app, log_level="warning", ws="websockets-sansio", ws_max_size=settings.max_message_bytes,
        timeout_graceful_shutdown=5,
    )  # fmt: skip
    config.load()
    config.http_protocol_class = patient(config.http_protocol_class, settings.idle_seconds)
    uvicorn.Server(config).run(sockets=[listening])


def application(service: Service, key: str | None = None) -> Any:
    """The FastAPI application; its worker runs from startup to shutdown."""
    require("serve", "fastapi")
    require("serve", "python_multipart")
    from fastapi import FastAPI, File, Form, Request, UploadFile, WebSocket
    from fastapi.exceptions import RequestValidationError
    from starlette.concurrency import run_in_threadpool
    from starlette.exceptions import HTTPException
    from starlette.responses import JSONResponse, PlainTextResponse, Response

    from seqloom.systems.deep_speech2.conversation import Conversation

    @asynccontextmanager
    async def lifespan(_: Any) -> AsyncIterator[None]:
        service.dispatcher.start()
        yield
        await run_in_threadpool(service.dispatcher.stop)

    app = FastAPI(title="seqloom speech", lifespan=lifespan)
    guard(app, key, max_body_bytes=service.settings.max_file_bytes, idle_seconds=service.settings.idle_seconds)

    @app.exception_handler(HTTPException)
    async def refused(_: Request, error: HTTPException) -> Response:
        return JSONResponse(error_body(error.status_code, str(error.detail)), error.status_code)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        return JSONResponse(error_body(400, f"{first['loc'][-1]}: {first['msg']}"), 400)

    @app.websocket("/v1/audio/stream")
    async def stream(socket: WebSocket) -> None:
        await Conversation(socket, service).run()

    @app.post("/v1/audio/transcriptions")
    async def transcriptions(
        file: Annotated[UploadFile, File()],
        model: Annotated[str, Form()] = service.name,
        response_format: Annotated[str, Form()] = "json",
        language: Annotated[str | None, Form()] = None,
    ) -> Response:
        if response_format not in FORMATS:
            raise HTTPException(400, f"response_format: '{response_format}'; allowed: {', '.join(FORMATS)}")
        if model != service.name:
            raise HTTPException(404, f"model: '{model}' is not served; served: {service.name}")
        try:
            found = await run_in_threadpool(service.transcribe, file.filename or "recording", file.file)
        except BusyError as error:
            raise HTTPException(429, str(error)) from None
        except (DataError, ConfigError) as error:
            raise HTTPException(400, f"file: {error}") from None
        headers = {} if language is None else {"X-Note": "language is ignored; the model knows what it was trained on"}
        if response_format in ("json", "verbose_json"):
            return JSONResponse(_json(found, verbose=response_format != "json"), headers=headers)
        writers = {"text": lambda one: one.text + "\n", "srt": to_srt, "vtt": to_vtt}
        return PlainTextResponse(writers[response_format](found), headers=headers)

    @app.get("/v1/models")
    async def models() -> Any:
        return {"object": "list", "data": [{"id": service.name, "object": "model", "owned_by": "seqloom"}]}

    @app.get("/health")
    async def health() -> Any:
        return {"status": "ok"}

    @app.get("/ready")
    async def ready() -> Response:
        works = service.dispatcher.running
        return JSONResponse({"status": "ready" if works else "the worker has ended"}, 200 if works else 503)

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(service.metrics.written(), media_type="text/plain; version=0.0.4; charset=utf-8")

    return app


def _json(found: Transcript, *, verbose: bool) -> dict[str, Any]:
    if not verbose:
        return {"text": found.text}
    segments = [
        {"id": number, "start": one.start, "end": one.end, "text": one.text, "confidence": one.confidence}
        for number, one in enumerate(found.segments)
    ]
    words = [{"word": word.text, "start": word.start, "end": word.end} for word in found.words]
    return {"task": "transcribe", "duration": found.seconds, "text": found.text, "segments": segments, "words": words}
