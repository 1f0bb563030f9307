"""Load, death, and clients that leave: what the front does when things go wrong behind it or before it."""

import asyncio
import json
import os
import signal
import time

import httpx
import pytest
from serve.http.front import make, serving

from seqloom.core.errors import ConfigError

CHAT = "/v1/chat/completions"


def ask(text, **more):
    return {"messages": [{"role": "user", "content": text}], **more}


def events(response):
    lines = [line.removeprefix("data: ") for line in response.iter_lines() if line.startswith("data: ")]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


def eventually(holds, seconds=5.0):
    until = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < until
        time.sleep(0.01)


def metric(http, name):
    return next(float(line.split()[-1]) for line in http.get("/metrics").text.splitlines() if line.startswith(name))


@pytest.mark.full
def test_a_dead_engine_is_told_of_and_comes_back(folder, monkeypatch):
    monkeypatch.setattr("seqloom.serve.http.engine_process.SPARE_SECONDS", 0.0)
    with serving(folder) as server, httpx.Client(base_url=server.address) as http:
        with http.stream("POST", CHAT, json=ask("DIE{3}", stream=True)) as response:
            *_, last = events(response)
        assert last["error"]["type"] == "server_error"
        whole = http.post(CHAT, json=ask("DIE{0}"))
        while whole.status_code == 503 and "started" in whole.json()["error"]["message"]:
            assert whole.headers["retry-after"]
            if "while it answered" in whole.json()["error"]["message"]:
                break
            whole = http.post(CHAT, json=ask("DIE{0}"))
        assert http.get("/health").status_code == 200
        eventually(lambda: http.get("/ready").status_code == 200, 10)
        eventually(lambda: server.engine._spare.pipe is not None, 10)
        began, before, spare = time.monotonic(), server.engine.pid, server.engine._spare.pipe._process.get_pid()
        os.kill(before, signal.SIGKILL)
        eventually(lambda: server.engine.pid != before and http.get("/ready").status_code == 200, 10)
        assert time.monotonic() - began < 10
        assert server.engine.pid == spare
        assert http.post(CHAT, json=ask("SAY{back}")).json()["choices"][0]["message"]["content"] == "back"
        assert metric(http, "seqloom_engine_restarts_total") == 3
        eventually(lambda: server.engine._spare.pipe is not None, 10)
        os.kill(server.engine._spare.pipe._process.get_pid(), signal.SIGKILL)
        eventually(server.engine._spare.pipe.lost.done)
        os.kill(server.engine.pid, signal.SIGKILL)
        eventually(lambda: server.engine.pid not in (spare, 0) and http.get("/ready").status_code == 200, 10)


@pytest.mark.full
def test_an_engine_that_hangs_is_ended_and_comes_back(folder):
    with serving(folder, hang_seconds=1.2) as server, httpx.Client(base_url=server.address, timeout=20) as http:
        before = server.engine.pid
        with http.stream("POST", CHAT, json=ask("HANG{3}", stream=True)) as response:
            *_, last = events(response)
        assert last["error"]["type"] == "server_error"
        eventually(lambda: server.engine.pid != before and http.get("/ready").status_code == 200, 10)
        assert http.post(CHAT, json=ask("SLOW{15}")).status_code == 200  # slow is not silent


@pytest.mark.full
def test_an_engine_that_always_dies_stays_dead(folder, monkeypatch):
    monkeypatch.setattr("seqloom.serve.http.engine_process.MOST_DEATHS", 2)
    with serving(folder) as server, httpx.Client(base_url=server.address) as http:
        for _ in range(2):
            eventually(lambda: http.get("/ready").status_code == 200, 10)
            os.kill(server.engine.pid, signal.SIGKILL)
            eventually(lambda: http.get("/ready").status_code == 503)
        eventually(lambda: http.get("/ready").json() == {"status": "failed"})
        assert http.post(CHAT, json=ask("SAY{a}")).status_code == 503
        assert http.get("/health").status_code == 200


def test_a_model_that_cannot_be_opened_is_said_at_once(folder):
    _, engine = make(folder, fails=True)
    with pytest.raises(ConfigError, match="no such model"):
        asyncio.run(engine.start())


@pytest.mark.full
def test_no_more_than_there_is_room_for(folder):
    with serving(folder, places=3, rows=1) as server, httpx.Client(base_url=server.address, timeout=20) as http:

        async def run():
            async with httpx.AsyncClient(base_url=server.address, timeout=20) as many:
                asked = [asyncio.create_task(many.post(CHAT, json=ask("SLOW{3}"))) for _ in range(3)]
                while server.engine.taken < 3:
                    await asyncio.sleep(0.01)
                began = time.perf_counter()
                refused = await many.post(CHAT, content=b"not even read")
                seconds = time.perf_counter() - began
                return refused, seconds, await asyncio.gather(*asked)

        refused, seconds, answered = asyncio.run(run())
        assert refused.status_code == 429
        assert int(refused.headers["retry-after"]) >= 1
        assert refused.json()["error"]["code"] == "rate_limit_exceeded"
        assert seconds < 0.5
        assert [one.status_code for one in answered] == [200] * 3
        assert http.post(CHAT, json=ask("SAY{a}", n=4)).status_code == 400  # never has room
        assert http.post(CHAT, json=ask("SAY{a}", n=3)).status_code == 200
        assert metric(http, 'seqloom_requests_total{outcome="busy"}') == 1


@pytest.mark.parametrize("stream", [True, False])
def test_who_leaves_is_forgotten(folder, server, stream):
    async def leave():
        async with httpx.AsyncClient(base_url=server.address) as http:
            for _ in range(5):
                try:
                    async with (
                        asyncio.timeout(0.15),
                        http.stream("POST", CHAT, json=ask("go", max_tokens=4000, stream=stream)) as got,
                    ):
                        await got.aread()
                except TimeoutError:
                    pass

    with serving(folder, turn_seconds=0.005) as server:
        asyncio.run(leave())
        eventually(lambda: server.engine.taken == 0)
        eventually(lambda: server.engine.statistics.get("rows_running") == 0)
        assert server.engine.statistics["pages_free"] == server.engine.statistics["pages"]


@pytest.mark.full
def test_a_signal_lets_finish_what_is_under_way(folder):
    with serving(folder, drain_seconds=10.0) as server, httpx.Client(base_url=server.address) as http:
        with http.stream("POST", CHAT, json=ask("SLOW{5}", stream=True)) as response:
            lines = response.iter_lines()
            next(lines)
            server.signal()
            with httpx.Client(base_url=server.address) as other:
                assert other.post(CHAT, json=ask("SAY{a}")).status_code == 503
                assert other.get("/ready").json() == {"status": "draining"}
            rest = "".join(lines)
        assert rest.endswith("data: [DONE]")
        assert '"error"' not in rest
        assert '" 5"' in rest
        server._thread.join(10)
        assert not server._thread.is_alive()


@pytest.mark.full
def test_what_takes_too_long_is_told_so(folder):
    with serving(folder, drain_seconds=0.2) as server, httpx.Client(base_url=server.address) as http:
        with http.stream("POST", CHAT, json=ask("SLOW{60}", stream=True)) as response:
            lines = response.iter_lines()
            next(lines)
            server.signal()
            rest = "".join(lines)
        assert '"error"' in rest


def test_meters(folder, server):
    with httpx.Client(base_url=server.address) as http:
        before = metric(http, "seqloom_answer_tokens_total")
        http.post(CHAT, json=ask("SAY{a b c}"))
        assert metric(http, "seqloom_answer_tokens_total") == before + 4
        text = http.get("/metrics").text
        for name in (
            "first_token_seconds_bucket",
            "token_seconds_sum",
            "rows_running",
            "pages_free",
            "prefix_hit_tokens",
        ):
            assert f"seqloom_{name}" in text
