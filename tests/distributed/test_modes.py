"""Whatever is dealt out, and to how many: gradients, losses and weights are those of one process."""

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest
from distributed.conftest import Go
from torch import Tensor

from seqloom.core.checkpoint.tensors import load_tensors
from seqloom.core.logs import read_metrics
from seqloom.systems.hybrid_lm.config import LoraConfig, Run

QUICK = {
    "data 2": (2, {}),
    "tensor 2": (2, {"tensor": 2}),
    "expert 2": (2, {"expert": 2}),
    "context 2": (2, {"context": 2}),
}
FULL = {
    "context 4": (4, {"context": 4}),
    "data 2, tensor 2": (4, {"tensor": 2}),
    "data 4, expert 2": (4, {"expert": 2}),
    "tensor 2, expert 2": (4, {"tensor": 2, "expert": 2}),
    "tensor 2, context 2": (4, {"tensor": 2, "context": 2}),
}
MODES = {
    "alone": (1, {}),
    "data 2, context 2": (4, {"context": 2}),
    "data 2, context 2, expert 4": (4, {"context": 2, "expert": 4}),
    **QUICK,
    **FULL,
}

LEARNED = {"loss", "objective", "bits_per_byte", "balance_loss", "mtp_1_loss", "mtp_2_loss", "grad_norm"}
EXACT = {"kind", "step", "tokens", "max_vio", "lr", "bytes"}


class Result(NamedTuple):
    """What a training leaves: the summed gradients of its first step, its log, its last weights."""

    gradients: dict[str, Tensor]
    log: list[dict[str, float]]
    weights: dict[str, Tensor]


def result(go: Go, folder: Path, mode: str, **order: object) -> Result:
    (ranks, parallel), kept = MODES[mode], folder.with_suffix(".safetensors")
    ended = go(folder, ranks, parallel=tuple(parallel.items()), gradients=str(kept), **order)
    assert ended.codes == [0] * ranks, ended.errors
    log = read_metrics(folder / "metrics.jsonl")
    (weights,) = folder.glob("*model.safetensors")
    return Result(load_tensors(kept), log, load_tensors(weights))


def worst(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """The largest difference of a tensor, as a share of its norm."""
    assert one.keys() == other.keys()
    return max(float((other[name] - tensor).norm() / tensor.norm()) for name, tensor in one.items())


@pytest.fixture(scope="module")
def alone(go: Go, tmp_path_factory: pytest.TempPathFactory) -> Result:
    return result(go, tmp_path_factory.mktemp("alone") / "run", "alone")


@pytest.fixture(scope="module")
def alone_excited(go: Go, tmp_path_factory: pytest.TempPathFactory) -> Result:
    return result(go, tmp_path_factory.mktemp("excited") / "run", "alone", excited=True, changes=(("steps", 1),))


@pytest.mark.parametrize("mode", [*QUICK, *(pytest.param(mode, marks=pytest.mark.full) for mode in FULL)])
def test_a_training_is_that_of_one_process(mode: str, alone: Result, go: Go, tmp_path: Path) -> None:
    spread = result(go, tmp_path / "run", mode)
    assert worst(alone.gradients, spread.gradients) < 1e-6
    assert [line["kind"] for line in spread.log] == ["train"] * 3 + ["valid"]
    # Muon lifts small singular values, and rounding with them: what follows on its steps is not as near as gradients.
    numbers = [line for line in alone.log if line["kind"] != "sample"]  # a text, which one process alone writes
    for one, other in zip(numbers, spread.log, strict=True):
        assert one.keys() == other.keys()
        for name in one.keys() & LEARNED:
            assert other[name] == pytest.approx(one[name], rel=4e-6), (name, one["step"])
        for name in one.keys() & EXACT:
            assert other[name] == one[name], (name, one["step"])
    assert worst(alone.weights, spread.weights) < 1e-4


@pytest.mark.full
@pytest.mark.parametrize("mode", ["tensor 2, expert 2", "data 2, context 2, expert 4"])
def test_gradients_agree_where_every_path_matters(mode: str, alone_excited: Result, go: Go, tmp_path: Path) -> None:
    """Under weights that carry a wrong scan, routing or exchange to the loss; they magnify rounding as well."""
    spread = result(go, tmp_path / "run", mode, excited=True, changes=(("steps", 1),))
    assert worst(alone_excited.gradients, spread.gradients) < 1e-5


@pytest.mark.full
def test_micro_batches_and_recomputed_layers_change_nothing(go: Go, alone: Result, run: Run, tmp_path: Path) -> None:
    small = replace(run, task=replace(run.task, micro_rows=1))
    changes = (("activation_checkpointing", True), ("steps", 1))
    spread = result(go, tmp_path / "run", "data 2, context 2", of=small, changes=changes)
    assert worst(alone.gradients, spread.gradients) < 1e-6


@pytest.mark.full
def test_adapters_are_spread_like_any_weights(go: Go, run: Run, tmp_path: Path) -> None:
    ended = go(tmp_path / "base", 1, changes=(("steps", 1),))
    assert ended.codes == [0], ended.errors
    optimizer = replace(run.train.optimizer, kind="adamw")
    tuned = replace(run, train=replace(run.train, steps=1, optimizer=optimizer)).starting_from(str(tmp_path / "base"))
    tuned = replace(tuned, adapter=LoraConfig(rank=2))
    alone, spread = (result(go, tmp_path / mode, mode, of=tuned) for mode in ("alone", "data 2"))
    assert worst(learned(alone.gradients), learned(spread.gradients)) < 1e-6
    assert alone.weights.keys() == spread.weights.keys()


def learned(gradients: dict[str, Tensor]) -> dict[str, Tensor]:
    """Those that are not zero altogether, as A's are while B is zero."""
    return {name: gradient for name, gradient in gradients.items() if gradient.any()}
