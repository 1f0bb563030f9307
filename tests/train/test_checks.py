"""What is refused, and that a refusal spoils nothing."""

import contextlib
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from train.test_loop import result
from train.toy import ToyModelConfig, ToyRun, ToyTaskConfig

from seqloom.core.checkpoint.run_folder import RunFolder
from seqloom.core.checkpoint.tensors import load_tensors
from seqloom.core.errors import ConfigError, DataError, NumericsError
from seqloom.train import checks, loop
from seqloom.train.loop import train
from seqloom.train.untraced import untraced

GIB = 2**30


def faulty(fault: str, step: int) -> ToyRun:
    return ToyRun(task=ToyTaskConfig(fault=fault, fault_step=step, micro=5))


def test_a_loss_that_is_not_finite_is_refused_with_step_and_module(tmp_path: Path) -> None:
    with pytest.raises(NumericsError, match=r"step 7: the loss is (nan|-?inf), first in the output of module 'inner'"):
        train(faulty("nan_loss", 7), tmp_path)


def test_a_gradient_that_is_not_finite_is_refused_with_the_parameter_it_reached_first(tmp_path: Path) -> None:
    with pytest.raises(
        NumericsError, match=r"step 3: the gradient norm is nan, first at 'head\.bias' \(7 parameters\)"
    ):
        train(faulty("nan_gradient", 3), tmp_path)


@pytest.mark.parametrize("fault", ["nan_loss", "nan_gradient"])
def test_a_refused_step_touches_neither_weights_nor_optimizer_nor_checkpoint(
    fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built: list[torch.nn.Module] = []
    build = ToyModelConfig.build
    monkeypatch.setattr(ToyModelConfig, "build", lambda self: built.append(build(self)) or built[-1])
    with pytest.raises(NumericsError):
        train(faulty(fault, 5), tmp_path)
    step, folder = RunFolder(tmp_path).open_latest()
    assert step == 5
    for name, tensor in load_tensors(folder / "model.safetensors").items():
        assert torch.equal(built[0].state_dict()[name], tensor), name
    assert all(tensor.isfinite().all() for tensor in load_tensors(folder / "optim.safetensors").values())


def test_a_bad_first_step_leaves_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(NumericsError, match="step 0"):
        train(faulty("nan_loss", 0), tmp_path)
    assert RunFolder(tmp_path).steps() == []


@pytest.mark.parametrize("step", [0, 2])
def test_a_batch_without_targets_is_refused(step: int, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"step {step}: the batch holds no target samples"):
        train(faulty("no_units", step), tmp_path)


def test_a_parameter_that_the_loss_never_reaches_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"would never learn: forgotten\.weight, forgotten\.bias$"):
        train(ToyRun(model=ToyModelConfig(idle=True)), tmp_path)


def test_a_part_of_the_loss_that_moves_nothing_is_refused_before_the_first_step(tmp_path: Path) -> None:
    run = ToyRun(task=ToyTaskConfig(idle_term=True, micro=5))
    with pytest.raises(ConfigError, match=r"^parts of the loss that move no parameter: idle; set their weight to 0"):
        train(run, tmp_path)
    assert not (tmp_path / "metrics.jsonl").exists()


def test_the_checks_leave_no_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The toy draws for dropout and counts in a buffer whenever its loss is computed."""
    looked = result(train(ToyRun(), tmp_path / "looked").path)
    monkeypatch.setattr(loop, "refuse_what_would_not_learn", lambda *args: None)
    assert result(train(ToyRun(), tmp_path / "not").path) == looked


def test_untraced_puts_back_generators_buffers_and_mode() -> None:
    model = ToyRun().model.build().train()
    before, draws = {name: buffer.clone() for name, buffer in model.named_buffers()}, torch.get_rng_state()
    with contextlib.suppress(RuntimeError), untraced(model):
        torch.rand(3)
        model.eval()
        model.kept += 1
        model.seen.fill_(5)
        raise RuntimeError("on the way")
    assert model.training
    assert torch.equal(torch.get_rng_state(), draws)
    assert all(torch.equal(buffer, before[name]) for name, buffer in model.named_buffers())


def test_a_frozen_parameter_may_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build = ToyModelConfig.build

    def frozen(self: ToyModelConfig) -> torch.nn.Module:
        model = build(self)
        model.forgotten.requires_grad_(False)
        return model

    monkeypatch.setattr(ToyModelConfig, "build", frozen)
    run = ToyRun(model=ToyModelConfig(idle=True))
    train(replace(run, train=replace(run.train, steps=2)), tmp_path)


def test_too_little_memory_is_refused_before_anything_is_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*args: object) -> None:
        raise AssertionError("must not be built")

    monkeypatch.setattr(ToyModelConfig, "build", never)
    monkeypatch.setattr(ToyTaskConfig, "build", never)
    monkeypatch.setattr(checks, "available_bytes", lambda device: 2 * GIB)
    run = ToyRun(model=ToyModelConfig(needed_bytes=4 * GIB))
    with pytest.raises(ConfigError) as caught:
        train(run, tmp_path)
    assert str(caught.value) == (
        "training needs about 5.20 GiB, and 2.00 GiB are available on cpu; "
        "lower task.micro, the sizes under model, or set train.activation_checkpointing"
    )
    with pytest.raises(ConfigError, match=r"lower task\.micro, the sizes under model$"):
        train(replace(run, train=replace(run.train, activation_checkpointing=True)), tmp_path)
