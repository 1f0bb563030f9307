"""The cases of the agent in little."""

import json
from typing import Any

import pytest
import torch

from benchmarks import agent
from benchmarks.__main__ import main

QUICK = ["--threads", "1", "--repeats", "1", "--steps", "40"]


def line(capsys: pytest.CaptureFixture[str], case: str, status: int = 0) -> dict[str, Any]:
    assert main(["agent", "--only", case, *QUICK]) == status
    (found,) = map(json.loads, capsys.readouterr().out.splitlines())
    return found


def test_a_built_in_game_is_played(capsys: pytest.CaptureFixture[str]) -> None:
    found = line(capsys, "environment-catch")
    assert found["figures"]["ours_steps_per_second"] > 0
    assert "ratio" not in found


def test_an_atari_game_shows_what_its_console_shows(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("ale_py")
    found = line(capsys, "environment-ale:Pong")
    assert found["gate"]["ours"] == found["gate"]["console"] > 0
    assert found["ratio"].keys() == {"console"}


def test_vtrace_is_that_of_the_loops(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent, "VTRACE", ((5, 3),))
    assert line(capsys, "vtrace-5-3")["ratio"].keys() == {"numpy", "torch_loop"}
    monkeypatch.setattr(agent, "_in_numpy", lambda *given: (torch.zeros(5, 3), torch.zeros(5, 3)))
    found = line(capsys, "vtrace-5-3", status=1)
    assert "targets or advantages differ" in found["error"]
    assert "seconds" not in found


@pytest.mark.parametrize("part", ["acting", "learning"])
def test_frames_are_counted(part: str, capsys: pytest.CaptureFixture[str]) -> None:
    found = line(capsys, f"{part}-toy")
    assert found["figures"]["ours_frames_per_second"] == pytest.approx(1 / found["seconds"]["ours"][1], rel=1e-3)
    assert found["share_of_ceiling"]["ours"] > 0


@pytest.mark.full
def test_an_actor_changes_no_loss(capsys: pytest.CaptureFixture[str]) -> None:
    found = line(capsys, "train-toy")
    assert found["gate"]["ours"] == found["gate"]["one_actor"]
    assert found["figures"].keys() == {"ours_frames_per_second", "one_actor_frames_per_second"}
