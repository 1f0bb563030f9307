"""Whatever comes in, the server answers it, and goes on answering others at once.

Requests that keep to OpenAPI's description and such as do not (schemathesis), requests that break JSON, HTTP or
patience (`mutations`); the engine behind is the fake one, so that only the front is tried.
"""

import contextlib
import json
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from serve.http.front import serving, write_tokenizer
from serve.http.mutations import hostile
from serve.http.raw import Answer, Wire, chat, events, request

from soak import SOAKING, soak

CLIENTS = 4
UNEXPECTED = {500, 501, 502, 503, 504, 505}
PATIENT_SECONDS = 0.1 if SOAKING else 2.0
"""`/health` must answer within; a machine that tests use for other things as well is slower."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tokenizer(tmp_path_factory.mktemp("fuzz"))


@pytest.fixture
def server(folder: Path) -> Iterator[Any]:
    with serving(folder, places=64, rows=16, max_body_bytes=1 << 20) as found:
        yield found


def assert_well(server: Any, pid: int) -> None:
    """The same engine, no place taken, and an answer at once."""
    wait_until_free(server)
    assert server.engine.pid == pid
    wire = Wire(server.address)
    began = time.monotonic()
    assert wire.ask("GET", "/health").json() == {"status": "ok"}
    assert time.monotonic() - began < PATIENT_SECONDS
    told = wire.ask("POST", "/v1/chat/completions", chat("SAY{fine}"))
    assert told.json()["choices"][0]["message"]["content"] == "fine"


def wait_until_free(server: Any) -> None:
    deadline = time.monotonic() + 20
    while server.engine.taken and time.monotonic() < deadline:
        time.sleep(0.05)
    assert server.engine.taken == 0


@pytest.mark.full
@pytest.mark.timeout(soak(300, 86_400))
def test_hostile_requests(server: Any) -> None:
    count, pid = soak(2000, 1_000_000), server.engine.pid
    bad: list[tuple[int, Answer]] = []
    statuses: Counter[int] = Counter()

    def client(first: int) -> None:
        wire = Wire(server.address)
        for number in range(first, count, CLIENTS):
            sent = hostile(number)
            try:
                wire.send(sent)
                answer = Answer(*wire.head(), b'{"error": 0}') if sent.startswith(b"HEAD") else wire.answer()
            except OSError:  # what is not HTTP may end a connection, and the next one works
                wire = Wire(server.address)
                continue
            statuses[answer.status] += 1
            if answer.status in UNEXPECTED or (answer.status >= 400 and b'"error"' not in answer.body):
                bad.append((number, answer))
            if sent.startswith(b"HEAD") or answer.headers.get("connection") == "close":
                wire = Wire(server.address)

    threads = [threading.Thread(target=client, args=(first,)) for first in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not bad, f"{len(bad)} of {count}; the first: {bad[0]}, {hostile(bad[0][0])[:600]!r}"
    assert statuses.total() > 0.9 * count
    assert statuses[200] > count / 100
    assert statuses[400] > count / 10
    assert_well(server, pid)


@pytest.mark.full
@pytest.mark.timeout(soak(300, 86_400))
@pytest.mark.filterwarnings("ignore")  # of schemathesis and what it brings
def test_requests_from_our_own_description(server: Any) -> None:
    """Such as keep to `/openapi.json`, and such as do not."""
    schemathesis = pytest.importorskip("schemathesis")
    pid = server.engine.pid
    described = Wire(server.address).ask("GET", "/openapi.json").json()
    paths = {path for path, methods in described["paths"].items() if "post" in methods}
    assert {"/v1/chat/completions", "/v1/completions", "/v1/responses", "/tokenize", "/detokenize"} <= paths
    schema = schemathesis.openapi.from_dict(described)
    modes, rounds = schemathesis.GenerationMode, soak(1, 10)
    for path in sorted(paths):
        for mode in (modes.POSITIVE, modes.NEGATIVE):
            strategy = schema[path]["POST"].as_strategy(generation_mode=mode)
            for body in (body for number in range(rounds) for body in _invented(strategy, number)):
                told = Wire(server.address).ask("POST", path, body)  # inventing may take longer than a server waits
                assert told.status not in UNEXPECTED, (path, body, told)
    assert_well(server, pid)


def _invented(strategy: Any, number: int) -> list[bytes]:
    """Bodies of some cases of a strategy, as far as they are JSON; other ones for each number.

    Few at a time: the search remembers all that it tried, and slows down by it.
    """
    from hypothesis import HealthCheck, Phase, given, seed, settings

    found: list[bytes] = []

    @seed(number)
    @given(case=strategy)
    @settings(
        max_examples=soak(5, 100), deadline=None, database=None, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    def note(case: Any) -> None:
        with contextlib.suppress(TypeError):
            found.append(json.dumps(case.body).encode())

    note()
    return found


@pytest.mark.full
def test_slow_and_half_open_clients(folder: Path) -> None:
    """They are closed after a while, and keep nobody waiting meanwhile."""
    with serving(folder, places=64, rows=16, idle_seconds=1.0) as server:
        pid = server.engine.pid
        whole = request("POST", "/v1/chat/completions", chat("COUNT{3}"))
        halves = [Wire(server.address) for _ in range(soak(24, 400))]
        for number, wire in enumerate(halves):
            wire.send((b"", whole[: 20 + number % 20], whole[:-5], b"POST")[number % 4])
        trickling, took = Wire(server.address), []
        for byte in whole[:25]:  # a byte now and then is as good as none
            try:
                trickling.send(bytes([byte]))
            except OSError:
                break
            began = time.monotonic()
            assert Wire(server.address).ask("GET", "/health").status == 200
            took.append(time.monotonic() - began)
            time.sleep(0.1)
        assert sorted(took)[len(took) // 2] < PATIENT_SECONDS
        for wire in (*halves, trickling):
            wire.socket.settimeout(10)
            assert wire.closed()
        shut = Wire(server.address)  # nothing more to send, but an answer is waited for
        shut.send(whole)
        shut.socket.shutdown(1)
        assert_well(server, pid)


@pytest.mark.full
def test_a_client_that_does_not_read_holds_up_nobody(folder: Path) -> None:
    with serving(folder, places=8, rows=4, idle_seconds=1.0) as server:
        deaf = Wire(server.address)
        deaf.socket.setsockopt(1, 8, 4096)  # SO_RCVBUF
        asked = chat("COUNT{3900}", stream=True, logprobs=True, top_logprobs=5, max_tokens=3900)
        deaf.send(request("POST", "/v1/chat/completions", asked))
        told = Wire(server.address).ask("POST", "/v1/chat/completions", chat("COUNT{20}", stream=True))
        assert events(told.body)[-1] == "[DONE]"
        wait_until_free(server)
        deaf.socket.setsockopt(1, 8, 1 << 20)  # through so small a buffer, what was sent already takes a minute
        assert deaf.closed()
