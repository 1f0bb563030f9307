"""The README is true: it is short, its links lead somewhere, and every command in it runs.

`make` targets are planned with `make -n`; `seqloom` commands and Python blocks run for real, in order, in one folder.
Only their size is changed, in one place: the recipe `tiny` is replaced by a narrow one, and `--train.steps` by 2.
"""

import io
import json
import re
import shlex
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from micro_runs import narrow, write_texts
from seqloom.cli.main import main
from seqloom.systems.hybrid_lm import recipes

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)


def test_fits_one_screen_and_comes_to_the_point() -> None:
    assert len(README.splitlines()) <= 45
    assert len(README[: README.index("```")].split()) <= 90
    assert BLOCKS[0] == ("sh", "make demo\n")


def test_links_lead_somewhere() -> None:
    targets = re.findall(r"\]\((?!http)([^)#]+)\)", README)
    assert targets
    assert [target for target in targets if not (ROOT / target).exists()] == []


def test_every_command_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_texts(tmp_path / "my_texts")
    (tmp_path / "notes.jsonl").write_text('{"text": "to do: water the plants and read about state spaces"}\n' * 30)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(recipes.RECIPES, "tiny", narrow(tmp_path / "my_texts"))
    for language, block in BLOCKS:
        if language == "python":
            exec(compile(block, "README.md", "exec"), {})
        for line in block.splitlines() if language == "sh" else []:
            run_line(re.sub(r"--train\.steps \d+", "--train.steps 2", line), monkeypatch)


def run_line(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    program, *arguments = shlex.split(line, comments=True)
    if program == "make":
        subprocess.run(["make", "-n", *arguments], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    elif program == "source":
        assert arguments == [
            f"{re.search('^VENV := (.*)$', (ROOT / 'Makefile').read_text(), re.MULTILINE)[1]}/bin/activate"
        ]
    elif arguments[0] == "serve":
        command = [sys.executable, "-m", "seqloom", *arguments, "--port", "0"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
            address = re.search(r"http://\S+", server.stdout.readline())[0]
            with urllib.request.urlopen(f"{address}/health", timeout=30) as answer:
                assert json.load(answer)["status"] == "ok"
            server.send_signal(signal.SIGTERM)
        assert server.returncode == 0
    else:
        assert program == "seqloom"
        monkeypatch.setattr("sys.stdin", io.StringIO("def total(\n/quit\n"))
        main(arguments)
