"""Deaths and ends: of the engine's process, of the server; and that one address is all that a server has to do with
the network."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from serve.http.front import make, serving, write_tokenizer
from serve.http.raw import Wire, chat, events, request

KEY = "a-key-of-sixteen-signs"
AGAIN_SECONDS = 10.0
WATCH = """
import os, sys

def note(event, arguments):
    if event in ("socket.connect", "socket.bind", "socket.sendto", "socket.getaddrinfo"):
        with open(os.environ["WATCH_LOG"], "a") as log:
            print(event, arguments[1:] if event != "socket.getaddrinfo" else arguments, file=log)

sys.addaudithook(note)
"""
"""Imported by every Python process below: writes down each address that is bound or called."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tokenizer(tmp_path_factory.mktemp("kill"))


def begin(address: str, text: str) -> Wire:
    """A stream of which the first event has come."""
    wire = Wire(address)
    wire.send(request("POST", "/v1/chat/completions", chat(text, stream=True)))
    status, _ = wire.head()
    assert status == 200
    return wire


@pytest.mark.full
@pytest.mark.parametrize("way", ["kill", "by a request"])
def test_an_engine_that_dies_is_back_and_its_streams_end_with_an_error(folder: Path, way: str) -> None:
    with serving(folder, places=16, rows=8) as server:
        streams = [begin(server.address, "SLOW{200}") for _ in range(3)]
        whole = Wire(server.address)
        whole.send(request("POST", "/v1/chat/completions", chat("SLOW{200}")))
        time.sleep(0.5)
        pid = server.engine.pid
        began = time.monotonic()
        if way == "kill":
            os.kill(pid, signal.SIGKILL)
        else:
            streams.append(begin(server.address, "DIE{2}"))
        for stream in streams:
            data = events(b"".join(stream.chunks()))
            assert "the engine ended" in data[-1 if data[-1] != "[DONE]" else -2]["error"]["message"]
        told = whole.answer()
        assert told.status in (500, 503)
        assert "the engine ended" in told.json()["error"]["message"]
        wire = Wire(server.address)
        assert wire.ask("GET", "/health").status == 200
        while (answer := wire.ask("POST", "/v1/chat/completions", chat("SAY{again}"))).status != 200:
            assert answer.status == 503
            assert answer.headers["retry-after"]
            assert time.monotonic() - began < AGAIN_SECONDS
            time.sleep(0.05)
        assert answer.json()["choices"][0]["message"]["content"] == "again"
        assert server.engine.pid != pid
        assert not psutil.pid_exists(pid)
        assert server.engine.taken == 0


@pytest.mark.full
def test_a_first_signal_drains(folder: Path) -> None:
    with serving(folder, places=16, rows=8, drain_seconds=20.0) as server:
        under_way, pid = begin(server.address, "SLOW{12}"), server.engine.pid
        idle = Wire(server.address)
        assert idle.ask("GET", "/ready").status == 200
        server.signal()
        time.sleep(0.2)
        try:
            late = idle.ask("POST", "/v1/chat/completions", chat("SAY{late}"))
        except OSError:
            pass  # it no longer listens
        else:
            assert late.status == 503
        data = events(b"".join(under_way.chunks()))
        assert data[-1] == "[DONE]"
        text = "".join(one["choices"][0]["delta"].get("content") or "" for one in data[:-1])
        assert text == " ".join(map(str, range(1, 13)))
        deadline = time.monotonic() + 10
        while psutil.pid_exists(pid) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not psutil.pid_exists(pid)


def test_every_route_but_two_and_the_page_asks_for_the_key(folder: Path) -> None:
    testing = pytest.importorskip("starlette.testclient")
    from seqloom.serve.http.answer_routes import BODIES
    from seqloom.serve.http.app import facts
    from seqloom.serve.http.model import ServedModel
    from seqloom.serve.http.page import page_files

    app, engine = make(folder, key=KEY)
    client = testing.TestClient(app)  # not entered: no engine is started
    seen: dict[str, int] = {}
    routes = [
        (route.path.replace("{name:path}", "fake"), route.methods)
        for route in facts(engine=engine, model=ServedModel(folder, "fake")).routes
    ]
    for path, methods in [*routes, *((path, ["POST"]) for path in BODIES)]:
        for method in methods:
            seen[f"{method} {path}"] = client.request(method, path, json={}).status_code
            wrong = client.request(method, path, json={}, headers={"Authorization": "Bearer wrong-key-of-16-signs"})
            assert wrong.status_code == seen[f"{method} {path}"]
    openly = {"/health", "/ready", *page_files()}
    asked = {one for one, status in seen.items() if status == 401}
    assert {one for one in seen if one.split()[1] not in openly} == asked
    assert len(asked) >= 9
    assert client.get("/v1/models", headers={"Authorization": f"Bearer {KEY}"}).status_code == 200


@pytest.mark.full
@pytest.mark.timeout(300)
def test_a_served_model_listens_once_and_calls_nobody(tmp_path: Path) -> None:
    """The command itself, with a model of some thousand parameters, its engine killed once, then asked to end."""
    from tiny_models import make as make_model

    model = make_model("mtp", vocab_size=512)
    folder = write_tokenizer(tmp_path / "model")
    model.write_folder(folder)
    (tmp_path / "watch").mkdir()
    (tmp_path / "watch" / "sitecustomize.py").write_text(WATCH)
    log = tmp_path / "log"
    log.touch()
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "watch"), "WATCH_LOG": str(log)}
    command = [sys.executable, "-m", "seqloom", "serve", str(folder), "--port", "0"]
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as server:
        try:
            assert server.stdout is not None
            first = server.stdout.readline()
            assert "http://127.0.0.1:" in first, first + server.stdout.read()
            threading.Thread(target=server.stdout.read, daemon=True).start()  # what else it says must not fill the pipe
            address = next(word for word in first.split() if word.startswith("http://"))
            answer = _answer(address)
            assert answer["usage"]["completion_tokens"] == 8
            processes = [psutil.Process(server.pid), *psutil.Process(server.pid).children(recursive=True)]
            assert len(processes) >= 2
            connections = [(one.pid, each) for one in processes for each in one.net_connections("inet")]
            assert [each.laddr.port for _, each in connections if each.status == "LISTEN"] == [
                int(address.split(":")[-1])
            ]
            assert all(each.laddr.ip == "127.0.0.1" for _, each in connections)
            engine = next(one for one in processes[1:] if "seqloom.serve.worker" in one.cmdline())
            engine.kill()
            began = time.monotonic()
            again = None
            while again is None:
                assert time.monotonic() - began < 6 * AGAIN_SECONDS
                time.sleep(0.1)
                again = _answer(address)
            assert again["choices"] == answer["choices"]
            server.send_signal(signal.SIGTERM)
            assert server.wait(30) == 0
        finally:
            server.kill()
    told = log.read_text().splitlines()
    assert [line for line in told if "socket.bind" in line and "127.0.0.1" not in line] == []
    assert len([line for line in told if "socket.bind" in line]) == 1
    assert [line for line in told if "socket.connect" in line or "socket.sendto" in line] == []
    assert [line for line in told if "getaddrinfo" in line and "127.0.0.1" not in line] == []


def _answer(address: str) -> Any:
    """A completion; None while there is no engine."""
    wire = Wire(address, timeout=60)
    body = {"prompt": [1, 5, 6, 7], "max_tokens": 8, "temperature": 0, "ignore_eos": True}
    told = wire.ask("POST", "/v1/completions", json.dumps(body).encode())
    wire.close()
    assert told.status in (200, 503), told
    return told.json() if told.status == 200 else None
