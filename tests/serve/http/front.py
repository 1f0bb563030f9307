"""A whole server for tests: the real front on a loopback port or in this process, and the fake engine behind it."""

import contextlib
import gc
import threading
from pathlib import Path
from typing import Any

from sample_texts import CODE, PROSE
from serve.http.fake_engine import COMMAND_LINE

from seqloom.data.tokenizer import TextTokenizer, train_tokenizer
from seqloom.serve.http.app import application
from seqloom.serve.http.drain import DrainingServer
from seqloom.serve.http.engine_process import EngineProcess
from seqloom.serve.http.guard import address, listen
from seqloom.serve.http.metrics import Metrics
from seqloom.serve.http.model import ServedModel
from seqloom.serve.http.prepared import Defaults

TEMPLATES = Path(__file__).parents[2] / "data" / "chat_templates"


def write_tokenizer(folder: Path, template: str | None = "nemotron_3") -> Path:
    """A model folder as far as the front reads it."""
    plain = train_tokenizer([CODE, PROSE], 400)
    text = None if template is None else (TEMPLATES / f"{template}.jinja").read_text()
    folder.mkdir(parents=True, exist_ok=True)
    TextTokenizer(plain.definition, bos=1, eos=2, pad=0, chat_template=text).save(folder)
    return folder


def make(
    folder: Path, *, key: str | None = None, places: int = 8, thinking: bool = False, hang_seconds: float = 60.0,
    **settings: Any,
) -> Any:  # fmt: skip
    """(application, engine); settings of the application by their names, all others go to the fake engine."""
    limits = {name: settings.pop(name) for name in ("max_body_bytes", "idle_seconds") if name in settings}
    defaults = Defaults(draft_tokens=0, answer_tokens=64, thinking_tokens=None)
    opening = {"open": str(folder), "engine": settings, "threads": None}
    engine = EngineProcess(opening, places, Metrics(), COMMAND_LINE, hang_seconds)
    model = ServedModel(folder, "fake", thinking=thinking)
    return application(model, engine, defaults, key=key, **limits), engine


class Serving:
    """A server in a thread of its own."""

    def __init__(self, app: Any, engine: EngineProcess, **settings: Any) -> None:
        self.engine = engine
        self._listening = listen("127.0.0.1", 0)
        self.address = address("127.0.0.1", self._listening)
        self._server = DrainingServer(
            app,
            engine,
            idle_seconds=settings.get("idle_seconds", 30.0),
            drain_seconds=settings.get("drain_seconds", 5.0),
        )
        self._ready = threading.Event()
        run = self._server.run_until_signalled
        self._thread = threading.Thread(target=run, args=(self._listening, self._ready.set), daemon=True)

    def start(self) -> "Serving":
        self._thread.start()
        assert self._ready.wait(30)
        return self

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join(20)
        self._listening.close()

    def signal(self) -> None:
        """What SIGTERM does."""
        self._server.handle_exit(15, None)


@contextlib.contextmanager
def serving(folder: Path, **settings: Any) -> Any:
    """A server on a loopback port; gives it with its `address`."""
    drain = {name: settings.pop(name) for name in ("drain_seconds",) if name in settings}
    idle = {name: settings[name] for name in ("idle_seconds",) if name in settings}
    app, engine = make(folder, **settings)
    # The thread of the server starts processes, for which uvloop takes the locks of logging and of imports. A test that
    # imports in that moment holds the second, and must not free a log handler then, which takes the first.
    gc.disable()
    found = Serving(app, engine, **drain, **idle).start()
    try:
        yield found
    finally:
        found.stop()
        gc.enable()
