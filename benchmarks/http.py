"""What the server costs in front of an engine: the same engine without a model, asked over HTTP and by its pipe.

Server, engine and client are processes of their own. The tests' fake engine answers at once, so that what is left is
the way: parsing, checking, tokenizing, frames, events.
"""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import psutil

from benchmarks.case import Line
from benchmarks.child import ROOT
from benchmarks.pairing import OURS, in_turns, plain, short

TESTS = ROOT / "tests"
ENGINE, CHAT = "engine alone", "chat"
REQUESTS, TOKENS = 100, 2000
_FRONT = """
import sys
from pathlib import Path
from serve.http.front import serving, write_tokenizer

folder = write_tokenizer(Path(sys.argv[1]))
with serving(folder, places=8, rows=4) as server:
    print(server.address, flush=True)
    sys.stdin.read()
"""


def request_cost(folder: Path, repeats: int) -> Line:
    """Seconds of a whole completion of one token, and of one in a chat, whose template is rendered first."""
    body = {"prompt": [1, 5, 6, 7], "max_tokens": 1}
    chat = {"messages": [{"role": "user", "content": "Say something nice."}], "max_tokens": 1}

    def many(ask: Callable[[], object]) -> Callable[[], None]:
        def run() -> None:
            for _ in range(REQUESTS):
                ask()

        return run

    with _server(folder) as (wire, front), _engine(folder) as answer:
        over_http = _counted(many(lambda: _whole(wire, body)), front)
        sides = {
            OURS: over_http,
            CHAT: plain(many(lambda: _whole(wire, chat, "/v1/chat/completions"))),
            ENGINE: plain(many(lambda: answer(1))),
        }
        line = _with_overhead(in_turns(sides, repeats, REQUESTS), over_http, REQUESTS)
    seconds = {name: quartiles[1] for name, quartiles in line["seconds"].items()}
    line["figures"]["chat_overhead_microseconds"] = short(1e6 * (seconds[CHAT] - seconds[ENGINE]))
    return line


def token_cost(folder: Path, repeats: int) -> Line:
    """Seconds of a token of a streamed completion."""
    body = {"prompt": [1, 5, 6, 7], "max_tokens": TOKENS, "stream": True}
    with _server(folder) as (wire, front), _engine(folder) as answer:
        over_http = _counted(lambda: _whole(wire, body), front)
        line = in_turns({OURS: over_http, ENGINE: plain(lambda: answer(TOKENS))}, repeats, TOKENS)
    return _with_overhead(line, over_http, TOKENS)


class _Counted(NamedTuple):
    """A side (see `pairing`) that notes what processor time the server takes for its turns."""

    run: Callable[[Any], object]
    before: Callable[[], Any]
    cpu_seconds: list[float]


def _counted(run: Callable[[], object], front: psutil.Process) -> _Counted:
    taken: list[float] = []

    def now() -> float:
        times = front.cpu_times()
        return times.user + times.system

    def counted(before: float) -> None:
        run()
        taken.append(now() - before)

    return _Counted(counted, now, taken)


def _with_overhead(line: Line, over_http: _Counted, units: int) -> Line:
    ours, alone = line["seconds"][OURS][1], line["seconds"][ENGINE][1]
    cpu = median(over_http.cpu_seconds[1:]) / units
    return line | {
        "figures": {"overhead_microseconds": short(1e6 * (ours - alone)), "server_cpu_microseconds": short(1e6 * cpu)}
    }


def _whole(wire: Any, body: dict[str, Any], path: str = "/v1/completions") -> None:
    told = wire.ask("POST", path, json.dumps(body).encode())
    assert told.status == 200, told


@contextmanager
def _server(folder: Path) -> Iterator[tuple[Any, psutil.Process]]:
    """A connection to a server in a process of its own, and that process."""
    sys.path.insert(0, str(TESTS))
    from serve.http.raw import Wire

    command = [sys.executable, "-c", _FRONT, str(folder)]
    with subprocess.Popen(command, cwd=TESTS, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            wire = Wire(process.stdout.readline().strip(), timeout=60)
            yield wire, psutil.Process(process.pid)
            wire.close()
        finally:
            process.terminate()


@contextmanager
def _engine(folder: Path) -> Iterator[Callable[[int], None]]:
    """An engine in a process of its own, asked by its pipe for so many tokens."""
    from seqloom.data.template_worker import receive, send

    command = [sys.executable, str(TESTS / "serve" / "http" / "fake_engine.py")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        source, sink = process.stdout, process.stdin
        send(sink, {"open": str(folder), "engine": {"rows": 4}, "threads": None})
        assert "ready" in (receive(source) or {})

        def answer(tokens: int) -> None:
            sampling = {"max_tokens": tokens}
            send(
                sink, {"do": "submit", "id": 0, "prompt": [1, 5, 6, 7], "sampling": sampling, "draft": 0, "marks": None}
            )
            while True:
                message = receive(source)
                assert message is not None
                if any(update.get("finish") for update in message.get("updates", ())):
                    return

        try:
            yield answer
        finally:
            process.kill()
