import io
import sys

import pytest

from seqloom.cli.stream import put


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_pipe_gets_every_character(capsys: pytest.CaptureFixture[str]) -> None:
    put("a\x1b[2Jé\n")
    assert capsys.readouterr().out == "a\x1b[2Jé\n"


def test_a_terminal_is_not_commanded_by_a_model(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    put("a\x1b[2J\r\x9b\tb\n")
    assert terminal.getvalue() == "a␛[2J␍␡\tb\n"
