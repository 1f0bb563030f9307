"""The command itself, on models of a second: lines, table, gates that stop the clock, peers that are not there."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import op_cases, ops, train
from benchmarks.__main__ import AREAS, main
from benchmarks.case import NotHere
from soak import SOAKING

ROOT = Path(__file__).parents[2]
QUICK = ["--threads", "1", "--repeats", "2"]


def lines(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, list[dict[str, Any]], str]:
    """Exit status, lines and table of a call."""
    status = main([*arguments, *QUICK])
    output = capsys.readouterr()
    return status, [json.loads(line) for line in output.out.splitlines()], output.err


def test_without_an_area_they_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    listed = capsys.readouterr().out
    assert all(f"  {area} " in listed and what in listed for area, what in AREAS.items())
    assert main(["trian"]) == 2


def test_an_unknown_case_is_named_with_the_known_ones(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["train", "--only", "31m-*"])
    assert "no case is named '31m-*'; there are 30m-fp32, 30m-bf16, 150m-fp32" in capsys.readouterr().err


def test_a_call_from_the_shell_leaves_lines_in_a_file(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "benchmarks",
        "ops",
        "--only",
        "rms_norm-4-512-768",
        "--out",
        str(tmp_path / "out"),
    ]
    done = subprocess.run([*command, *QUICK], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == (tmp_path / "out").read_text(encoding="utf-8")
    (line,) = map(json.loads, done.stdout.splitlines())
    assert (line["area"], line["case"], line["threads"]) == ("ops", "rms_norm-4-512-768", 1)
    assert {"machine", "cores", "python", "torch", "commit"} < line.keys()
    assert "rms_norm-4-512-768" in done.stderr


@pytest.mark.parametrize("format", ["fp32", "bf16"])
def test_training_is_gated_timed_and_held_against_the_ceiling(format: str, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("transformers")
    status, (line,), table = lines(capsys, "train", "--only", f"toy-{format}", "--rows", "2", "--length", "64")
    assert status == 0
    assert line["gate"]["transformers"] == pytest.approx(line["gate"]["ours"], rel=train_tolerance(format))
    assert line["gate"]["ours"][1] < line["gate"]["ours"][0]  # the step was taken
    for key in ("seconds", "tokens_per_second", "gflops", "share_of_ceiling"):
        assert line[key].keys() == {"ours", "transformers"}
    assert line["ratio"].keys() == line["versions"].keys() == {"transformers"}
    assert f"toy-{format}" in table
    assert "transformers" in table


def train_tolerance(format: str) -> float:
    return {"fp32": 1e-3, "bf16": 1e-2}[format]


@pytest.mark.parametrize("rows", ["rows1", "context128"])
def test_generation_is_compared_after_the_same_prompt(rows: str, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("transformers")
    _, (line,), _ = lines(capsys, "decode", "--only", f"toy-fp32-{rows}")
    twins = {"ours_attention", "transformers_attention"} if rows == "context128" else set()
    assert line["seconds"].keys() == {"ours", "transformers"} | twins
    assert all(gap < 1e-3 for gap in line["gate"].values())
    assert line["ceiling_seconds"]["ours"] == line["ceiling_seconds"]["transformers"]


def test_a_training_that_goes_another_way_is_not_timed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    steps = []

    def other(folder: Path, format: str, tokens: torch.Tensor) -> train.Step:
        return lambda: steps.append(1) or 6.2  # type: ignore[func-returns-value]

    monkeypatch.setattr(train, "their_step", other)
    monkeypatch.setattr(train, "versions", lambda *names: {})
    status, (line,), table = lines(capsys, "train", "--only", "toy-fp32", "--rows", "1", "--length", "32")
    assert status == 1
    assert len(steps) == train.GATE_STEPS
    assert "losses differ from those of transformers" in line["error"]
    assert "seconds" not in line
    assert "not measured: losses differ" in table


def test_an_op_that_breaks_or_computes_something_else_is_not_timed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def contest(T: int) -> op_cases.Contest:
        return op_cases.Contest("squared_relu", (torch.randn(T),), lambda x: x * 1.5, {"plain": lambda x: x * 1.4})

    def broken(T: int) -> op_cases.Contest:
        raise RuntimeError("no such device")

    monkeypatch.setattr(ops, "SHAPES", [(broken, (8,)), (contest, (8,))])
    status, (first, line), _ = lines(capsys, "ops")
    assert (first["case"], first["error"]) == ("broken-8", "RuntimeError: no such device")
    assert (status, line["case"]) == (1, "contest-8")
    assert "differ by {'plain': 0.14" in line["error"]
    assert "seconds" not in line


def test_ops_of_one_shape_agree_in_both_formats(capsys: pytest.CaptureFixture[str]) -> None:
    for format in ("fp32", "bf16"):
        status, (line,), _ = lines(capsys, "ops", "--only", "causal_conv-8-256-448", "--format", format)
        assert status == 0
        assert {"conv1d", "shifted"} <= line["ratio"].keys()
        assert line["share_of_ceiling"]["ours"] > 0


def test_a_peer_that_is_not_installed_is_said_to_be_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def missing(*_: object) -> None:
        raise NotHere("transformers is not installed")

    monkeypatch.setattr("benchmarks.peers.require", missing)
    status, (line,), table = lines(capsys, "prefill", "--only", "toy-fp32-512")
    assert status == 0
    assert line["skipped"] == {"transformers": "transformers is not installed"}
    assert line["seconds"].keys() == {"ours"}
    assert "without transformers: transformers is not installed" in table


@pytest.mark.skipif(not SOAKING, reason="starts processes that import transformers: run by `make soak`")
@pytest.mark.skipif(sys.platform != "linux", reason="reads peaks from /proc")
def test_memory_is_measured_in_processes_of_their_own(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("transformers")
    _, (line,), _ = lines(capsys, "memory", "--only", "toy-fp32", "--rows", "8", "--length", "256")
    for key in ("bytes", "tensor_bytes"):
        assert all(value > 2**20 for value in line[key].values())  # one step of 2048 tokens keeps megabytes
    assert line["gate"]["ours"] == pytest.approx(line["gate"]["transformers"], rel=1e-3)
