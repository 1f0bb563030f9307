"""Five times more requests than can be answered: the queue keeps its bound, the others are told at once when to come
again, and as much is answered as without them."""

import threading
import time
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from serve.http.front import serving, write_tokenizer
from serve.http.raw import Wire, chat

from soak import SOAKING, soak

TURN, TOKENS, ROWS, PLACES = 0.004, 25, 4, 12
CAPACITY = ROWS / (TURN * TOKENS)  # answers a second, if nothing but the engine took time
SECONDS = soak(2, 60)


class Outcome(NamedTuple):
    """What a client saw."""

    status: int
    seconds: float
    retry_after: str | None
    at: float


def clients(server: Any, count: int, pause: float, seconds: float) -> list[Outcome]:
    """So many clients that ask again and again, each after a pause if it was told to wait."""
    found: list[Outcome] = []
    end = time.monotonic() + seconds

    def one() -> None:
        wire = Wire(server.address)
        while (began := time.monotonic()) < end:
            told = wire.ask("POST", "/v1/chat/completions", chat(f"COUNT{{{TOKENS - 1}}}"))
            now = time.monotonic()
            found.append(Outcome(told.status, now - began, told.headers.get("retry-after"), now))
            if told.status != 200:
                time.sleep(pause)
        wire.close()

    threads = [threading.Thread(target=one) for _ in range(count)]
    for thread in threads:
        thread.start()
    most = 0
    while any(thread.is_alive() for thread in threads):
        told = server.engine.statistics
        most = max(most, told.get("rows_running", 0) + told.get("rows_waiting", 0))
        time.sleep(0.01)
    assert most <= PLACES
    return found


@pytest.mark.full
@pytest.mark.timeout(soak(120, 600))
def test_overload(tmp_path: Path) -> None:
    folder = write_tokenizer(tmp_path / "model")
    with serving(folder, places=PLACES, rows=ROWS, turn_seconds=TURN) as server:
        calm = clients(server, PLACES, 0.0, SECONDS)
        assert {outcome.status for outcome in calm} == {200}
        best = len(calm) / SECONDS
        # Those who are refused come back five times in the time of an answer, so offers are about five times the most.
        flood = clients(server, PLACES + soak(12, 48), 1 / CAPACITY, SECONDS)
        answered = [outcome for outcome in flood if outcome.status == 200]
        refused = [outcome for outcome in flood if outcome.status != 200]
        assert {outcome.status for outcome in refused} == {429}
        assert all(outcome.retry_after and 1 <= int(outcome.retry_after) <= 60 for outcome in refused)
        assert len(refused) > 4 * len(answered)
        late = sorted(outcome.seconds for outcome in refused)[int(0.99 * len(refused))]
        goodput = len(answered) / SECONDS / best
        assert late < (0.05 if SOAKING else 1.0), f"99 % of refusals took up to {late:.3f} s"
        assert goodput > (0.95 if SOAKING else 0.5), f"{goodput:.0%} of what is answered without the flood"
        wire = Wire(server.address)
        assert wire.ask("POST", "/v1/chat/completions", chat("SAY{calm}")).status == 200
        wire.close()
        assert server.engine.taken == 0
