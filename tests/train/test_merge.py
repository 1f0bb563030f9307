"""Merging emulates a decay: the tail sums are the curve, and the merged weights are those of the decayed steps."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from train.toy import ToyRun

from seqloom.core.checkpoint.run_folder import RunFolder
from seqloom.core.checkpoint.tensors import load_tensors, save_tensors
from seqloom.core.errors import CheckpointError, ConfigError
from seqloom.train.loop import train
from seqloom.train.merge import merge, merge_weights
from seqloom.train.schedules import decay


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    toy = ToyRun()
    toy = replace(toy, train=replace(toy.train, steps=8, save_every=2, keep_steps=4))
    return train(toy, tmp_path_factory.mktemp("kept"))


def test_minus_sqrt_weights_are_the_published_ones() -> None:
    expected = [math.sqrt(j / 7) - math.sqrt((j - 1) / 7) for j in range(1, 8)]
    assert merge_weights(7, "minus_sqrt") == pytest.approx(expected)
    assert merge_weights(7, "minus_sqrt") == sorted(merge_weights(7, "minus_sqrt"), reverse=True)


@pytest.mark.parametrize("shape", ["minus_sqrt", "linear", "cosine"])
def test_tail_sums_are_the_decay_curve(shape: str) -> None:
    weights = merge_weights(12, shape)
    for j in range(12):
        assert sum(weights[j:]) == pytest.approx(decay(j / 12, shape))


@pytest.mark.parametrize("shape", ["minus_sqrt", "linear"])
def test_merging_undecayed_steps_gives_the_decayed_run(shape: str, tmp_path: Path) -> None:
    source = torch.Generator().manual_seed(0)
    updates = [torch.randn(5, generator=source, dtype=torch.float64) for _ in range(6)]
    place, theta = RunFolder(tmp_path / "run"), torch.zeros(5, dtype=torch.float64)
    with place.lock():
        for step, update in enumerate(updates, start=1):
            theta = theta + update
            tensors = {"theta": theta.clone(), "count": torch.tensor(step)}
            place.save(step, lambda path, tensors=tensors: save_tensors(path / "model.safetensors", tensors), keep=9)
    assert merge(place, tmp_path / "merged", shape=shape) == [1, 2, 3, 4, 5, 6]
    merged = load_tensors(tmp_path / "merged" / "model.safetensors")
    decayed = sum(decay(j / 6, shape) * update for j, update in enumerate(updates))
    torch.testing.assert_close(merged["theta"], decayed)
    assert merged["count"] == 6


def test_the_result_is_a_model_folder_without_training_state(run: RunFolder, tmp_path: Path) -> None:
    merge(run, tmp_path / "new" / "merged", last=3)
    folder = tmp_path / "new" / "merged"
    assert sorted(path.name for path in folder.iterdir()) == [
        "asset.txt", "config.json", "merge.json", "model.safetensors", "run.yaml",
    ]  # fmt: skip
    facts = json.loads((folder / "merge.json").read_text())
    assert facts["steps"] == [4, 6, 8]
    merged = load_tensors(folder / "model.safetensors")
    parts = [load_tensors(run.folder(step) / "model.safetensors") for step in facts["steps"]]
    for name, tensor in merged.items():
        expected = sum(weight * part[name].double() for weight, part in zip(facts["weights"], parts, strict=True))
        assert torch.equal(tensor, expected.float())


@pytest.mark.parametrize("last", [0, 1, 5])
def test_more_or_fewer_than_are_kept_is_refused(last: int, run: RunFolder, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=rf"{last} checkpoints cannot be merged.*4 are kept \(train\.keep_steps"):
        merge(run, tmp_path / "merged", last=last)


def test_an_existing_folder_is_not_replaced(run: RunFolder, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="exists"):
        merge(run, tmp_path)


def test_a_damaged_checkpoint_is_not_merged(run: RunFolder, tmp_path: Path) -> None:
    weights = run.folder(6) / "model.safetensors"
    before = weights.read_bytes()
    weights.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
    try:
        with pytest.raises(CheckpointError, match=r"00000006: model\.safetensors: digest differs"):
            merge(run, tmp_path / "merged")
    finally:
        weights.write_bytes(before)
    assert not (tmp_path / "merged").exists()
