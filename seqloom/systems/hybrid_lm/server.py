"""Serves a language model: the engine in a process of its own, OpenAI's API and a chat page in front of it.

One address is listened to, and none is called. A first SIGTERM or Ctrl-C drains: new requests are turned away, those
under way may finish within `drain_seconds`; a second ends at once.
"""

from pathlib import Path
from typing import Annotated, Any, Literal

from seqloom.core.config import Ge, Gt, Interval, config
from seqloom.core.extras import require
from seqloom.core.rooms import model_folder
from seqloom.nn.state_formats import KVFormat, SsmFormat
from seqloom.serve.config import Weights


@config
class ServerConfig:
    """How to serve a language model."""

    max_rows: Annotated[int, Interval(ge=1, le=256)] = 8
    """Requests that are answered at the same time; further ones wait."""
    max_queue: Annotated[int, Ge(0)] = 64
    """Requests that may wait; beyond, they are told when to come again."""
    cache_tokens: Annotated[int, Ge(256)] = 32_768
    """Tokens that the caches of all requests hold together; also the most that one request may have."""
    draft_tokens: Annotated[int, Interval(ge=0, le=16)] | Literal["auto"] = "auto"
    """Tokens guessed ahead; auto finds what is fastest. Answers do not depend on it."""
    kv_cache: KVFormat | None = None
    """Format of keys and values in the cache; none as the model has it."""
    ssm_state: SsmFormat | None = None
    """Format of Mamba states in the cache; none as the model has it."""
    weights: Weights = "as_stored"
    """Format that the weights are kept in."""
    threads: Annotated[int, Ge(1)] | None = None
    """Cores that the engine computes on; none takes all."""
    name: str | None = None
    """What clients call the model; none takes the name of its folder."""
    thinking: bool = True
    """Whether a chat thinks when its request does not say, where the model can do both."""
    thinking_tokens: Annotated[int, Ge(0)] | None = None
    """Most tokens of thinking when the request does not say; none has no limit."""
    answer_tokens: Annotated[int, Ge(1)] = 4096
    """Most tokens of an answer in a chat when the request does not say."""
    max_body_bytes: Annotated[int, Ge(1024)] = 16 << 20
    """Longest body of a request."""
    idle_seconds: Annotated[float, Gt(0)] = 30.0
    """A client that sends no request, no body, or takes nothing for so long is closed."""
    drain_seconds: Annotated[float, Ge(0)] = 30.0
    """After a first signal, what is under way may take so long."""
    hang_seconds: Annotated[float, Ge(2)] = 300.0
    """An engine that says nothing for so long, far beyond what a turn takes, is ended and started again."""


def serve(run: Path, host: str, port: int, key: str | None, settings: ServerConfig) -> None:
    """Serve until interrupted.

    Args:
        run: a run or model folder of a language model.
        port: 0 takes a free one.
        key: what clients must send as a bearer token; needed unless the host is this machine.
    Raises:
        ConfigError: the model or an option cannot be used, a package is absent, or the address cannot be had.
        DataError: the tokenizer or its chat template cannot be used.
    """
    require("serve", "uvicorn")
    require("serve", "fastapi")
    from seqloom.serve.http.app import application
    from seqloom.serve.http.drain import DrainingServer
    from seqloom.serve.http.engine_process import EngineProcess
    from seqloom.serve.http.guard import address, listen
    from seqloom.serve.http.metrics import Metrics
    from seqloom.serve.http.model import ServedModel
    from seqloom.serve.http.prepared import Defaults

    folder, _ = model_folder(run)
    model = ServedModel(folder, settings.name or run.resolve().name, thinking=settings.thinking)
    places = settings.max_rows + settings.max_queue
    engine = EngineProcess(opening(run, settings), places, Metrics(), hang_seconds=settings.hang_seconds)
    defaults = Defaults(
        draft_tokens=settings.draft_tokens, answer_tokens=settings.answer_tokens,
        thinking_tokens=settings.thinking_tokens,
    )  # fmt: skip
    app = application(
        model, engine, defaults, key=key, max_body_bytes=settings.max_body_bytes, idle_seconds=settings.idle_seconds
    )
    server = DrainingServer(app, engine, idle_seconds=settings.idle_seconds, drain_seconds=settings.drain_seconds)

    with listen(host, port) as listening:
        shown = f"serving {run} at {address(host, listening)}  (Ctrl-C stops)"
        server.run_until_signalled(listening, lambda: print(shown, flush=True))


def opening(run: Path, settings: ServerConfig) -> dict[str, Any]:
    """What the engine's process is told first."""
    engine = {
        "max_rows": settings.max_rows,
        "cache_tokens": settings.cache_tokens,
        "kv_cache": settings.kv_cache,
        "ssm_state": settings.ssm_state,
        "weights": settings.weights,
    }
    return {"open": str(run.resolve()), "engine": engine, "threads": settings.threads}
