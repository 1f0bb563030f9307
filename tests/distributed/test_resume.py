"""Checkpoints know nothing of the grid that wrote them: any other one goes on from them."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from distributed.conftest import Go
from distributed.test_modes import worst

import seqloom
from seqloom.core.checkpoint.run_folder import RunFolder
from seqloom.core.checkpoint.tensors import load_tensors
from seqloom.core.logs import read_metrics
from seqloom.systems.hybrid_lm.config import Run

CLOCKS = {"seconds", "tokens_per_second", "memory_bytes"}
STOPPED = 143


def everything(folder: Path) -> dict[str, Any]:
    """All that a finished run leaves, without what the clock decides."""
    _, last = RunFolder(folder).open_latest()
    files = {p.name: p.read_bytes() for p in last.iterdir() if p.name not in ("state.json", "manifest.json")}
    state = {name: value for name, value in json.loads((last / "state.json").read_text()).items() if name != "seconds"}
    log = [
        {name: value for name, value in line.items() if name not in CLOCKS}
        for line in read_metrics(folder / "metrics.jsonl")
    ]
    return {**files, "state": state, "log": log}


def stop(go: Go, folder: Path, ranks: int, step: int, **order: object) -> None:
    """Train until a signal to the last rank ends all of them after a step."""
    ended = go(folder, ranks, fault="term", fault_rank=ranks - 1, fault_step=step - 1, **order)
    assert ended.codes == [STOPPED] * ranks, ended.errors
    assert ended.errors.count("interrupted") == 1
    assert f"step {step} is saved" in ended.errors
    assert RunFolder(folder).steps()[-1] == step


def finish(go: Go, folder: Path, ranks: int, **order: object) -> None:
    ended = go(folder, ranks, **order)
    assert ended.codes == [0] * ranks, ended.errors


def test_stopped_and_resumed_on_as_many_it_is_the_same_run(go: Go, tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    finish(go, whole, 2)
    stop(go, broken, 2, 2)
    finish(go, broken, 2)
    assert everything(broken) == everything(whole)


def test_ranks_that_are_told_to_stop_wait_for_the_one_that_saves(go: Go, tmp_path: Path) -> None:
    stop(go, tmp_path / "run", 2, 1, slow_disk=True)


@pytest.mark.full
def test_one_two_four_one(go: Go, run: Run, tmp_path: Path) -> None:
    """Each time cut in another way, with AdamW for all, and moved to another folder."""
    optimizer = replace(run.train.optimizer, kind="adamw")
    adamw = replace(run, train=replace(run.train, steps=4, evaluate_every=4, optimizer=optimizer))
    whole, first, second = tmp_path / "whole", tmp_path / "first", tmp_path / "second"
    finish(go, whole, 1, of=adamw)
    stop(go, first, 1, 1, of=adamw)
    stop(go, first, 2, 2, of=adamw, parallel=(("expert", 2),))
    shutil.move(first, second)
    stop(go, second, 4, 3, of=adamw, parallel=(("tensor", 2),))
    assert seqloom.load(second)(torch.tensor([[5, 6, 7]])).isfinite().all()
    finish(go, second, 1, of=adamw)
    for one, other in zip(everything(whole)["log"], everything(second)["log"], strict=True):
        assert one.keys() == other.keys()
        assert all(other[name] == pytest.approx(one[name], rel=1e-6) for name in one if not isinstance(one[name], str))
    for name in ("model.safetensors", "optim.safetensors"):
        one, other = (load_tensors((folder / "latest").resolve() / name) for folder in (whole, second))
        assert worst(one, other) < 1e-4
