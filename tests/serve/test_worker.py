"""The engine's process hears of everything that goes wrong in its threads."""

import os
import threading
from dataclasses import dataclass
from types import SimpleNamespace

import pytest

from seqloom.data.template_worker import receive, send
from seqloom.serve.worker import Worker


@dataclass
class Nothing:
    """There is nothing to tell."""


class Panic(BaseException):
    """As compiled libraries raise it: no Exception."""


def panic(grammar: object) -> None:
    raise Panic


def test_whoever_brings_a_grammar_that_breaks_the_compiler_hears_of_it(capsys: pytest.CaptureFixture[str]) -> None:
    pipes = [os.pipe() for _ in range(2)]
    (source, to_it), (from_it, sink) = ((os.fdopen(out, "rb"), os.fdopen(into, "wb")) for out, into in pipes)
    engine = SimpleNamespace(statistics=Nothing(), compile=panic)
    worker = threading.Thread(target=Worker(engine, source, sink).run)
    with source, to_it, from_it, sink:
        worker.start()
        send(to_it, {"do": "submit", "id": 7, "sampling": {"grammar": {"kind": "json"}}})
        while "updates" not in (message := receive(from_it)):
            pass
        send(to_it, {"do": "stop"})
        worker.join()
    (update,) = message["updates"]
    assert (update["id"], update["finish"]) == (7, "refused")
    assert "Panic" in update["error"]
    assert "raise Panic" in capsys.readouterr().err
