"""The front door: finding the verb, and what a mistake looks like."""

import subprocess
import sys
from pathlib import Path

import pytest

import seqloom
from seqloom.cli.main import VERBS, main


def code(*arguments: str) -> int:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert isinstance(stop.value.code, int)
    return stop.value.code


def test_help_names_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--help"])
    shown = capsys.readouterr().out
    assert all(f"\n  {verb} " in shown for verb in VERBS)
    main([])
    assert capsys.readouterr().out == shown


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--version"])
    assert capsys.readouterr().out == f"seqloom {seqloom.__version__}\n"


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_itself_with_an_example(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert code(verb, "--help") == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"usage: seqloom {verb}")
    assert f"Example: seqloom {verb}" in shown


def test_unknown_verb_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert code("trian") == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("seqloom: unknown verb 'trian'; did you mean 'train'?")
    assert len(shown.err.splitlines()) == 1


NEEDED = {
    "align": ["a.wav", "a.txt", "--run", "run"],
    "config": ["schema"],
    "convert": ["run", "new"],
    "demo": [],
    "list": [],
    "lm": ["build", "--out", "x.arpa"],
    "merge": ["run", "--out", "merged"],
    "study": ["stability"],
}


@pytest.mark.parametrize("verb", sorted(VERBS.keys() - {"serve"}))  # whose model says which options there are
def test_unknown_option_is_refused(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert code(verb, *NEEDED.get(verb, ["hybrid_lm/tiny"]), "--no-such-option") == 2
    assert "--no-such-option" in capsys.readouterr().err


def test_debug_shows_where_an_error_came_from() -> None:
    with pytest.raises(seqloom.core.errors.ConfigError, match="unknown verb"):
        main(["trian", "--debug"])


def test_a_closed_pipe_is_not_an_error() -> None:
    done = subprocess.run(
        f"{sys.executable} -m seqloom.cli.main config schema | head -n 1", shell=True, capture_output=True, text=True
    )
    assert done.stdout == "{\n"
    assert done.stderr == ""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_full_disk_is_one_message() -> None:
    done = subprocess.run(f"{sys.executable} -m seqloom.cli.main list > /dev/full", shell=True, capture_output=True)
    assert done.returncode == 2
    assert done.stderr.decode() == "seqloom: the output cannot be written: No space left on device\n"
