"""Learning by acting: batches, losses, resumed runs, and the refusal of what would learn something else."""

import json
import multiprocessing
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from seqloom.core.checkpoint.tensors import load_tensors
from seqloom.core.errors import CheckpointError, ConfigError, DataError
from seqloom.rl.config import EnvironmentConfig
from seqloom.systems.attention_agent.budget import training_bytes
from seqloom.systems.attention_agent.config import AgentTaskConfig, Run, VTraceConfig
from seqloom.systems.attention_agent.evaluate import evaluate
from seqloom.systems.attention_agent.model import AttentionAgent
from seqloom.systems.attention_agent.task import AgentTask
from seqloom.train.loop import train
from tests.systems.attention_agent.small import small

learners = pytest.mark.parametrize("learner", ["vtrace", "ppo"])
HERE = "gymnasium:tests.rl.pixel_environments"


def ready(run: Run) -> tuple[AgentTask, AttentionAgent]:
    torch.manual_seed(0)
    return run.task.build(run, torch.device("cpu")), run.model.build()


def gradients(task: AgentTask, model: AttentionAgent, batch: list[Any]) -> dict[str, torch.Tensor]:
    model.zero_grad()
    for micro in batch:
        task.loss(model, micro).total.backward()
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


@learners
def test_a_step_asked_for_again_has_the_same_batch(learner: str) -> None:
    task, model = ready(small(learner))
    for step in range(5):
        first, again = (task.next_batch(model, step) for _ in range(2))
        assert all(torch.equal(*pair) for pair in zip(first[0].unroll.seen, again[0].unroll.seen, strict=True))
        with torch.no_grad():
            model.policy.bias.add_(torch.randn(3))


@learners
def test_micro_batches_change_no_gradient(learner: str) -> None:
    task, model = ready(small(learner))
    whole = gradients(task, model, task.next_batch(model, 0))
    divided, _ = ready(small(learner, micro_environments=1))
    parts = divided.next_batch(model, 0)
    assert len(parts) == (2 if learner == "ppo" else 4)
    torch.testing.assert_close(gradients(divided, model, parts), whole)
    batch = task.next_batch(model, 0)
    torch.testing.assert_close(gradients(task, model, task.smallest(batch)), whole)


def test_vtrace_learns_with_a_lag_of_one_step() -> None:
    task, model = ready(small())
    weights = []
    ratios = []
    for step in range(4):
        weights.append(model.policy.bias.detach().clone())
        (micro,) = task.next_batch(model, step)
        for behind, old in enumerate(reversed(weights)):
            with torch.no_grad():
                now = model.policy.bias.clone()
                model.policy.bias.copy_(old)
                output = task._forward(model, micro.unroll)
                if float(task._log_ratios(output, micro.unroll).abs().max()) < 1e-5:
                    ratios.append((step, behind))
                model.policy.bias.copy_(now)
        with torch.no_grad():
            model.policy.bias.add_(torch.randn(3))
    assert ratios == [(0, 0), (1, 1), (2, 1), (3, 1)]


def test_ppo_goes_over_a_rollout_in_minibatches_of_whole_unrolls() -> None:
    task, model = ready(small("ppo"))
    seen = [task.next_batch(model, step)[0] for step in range(5)]
    assert all(micro.unroll.log_probs.shape == (6, 2) for micro in seen)
    rollouts = []
    for first in (0, 2):  # an epoch shows every unroll once
        shown = torch.cat([micro.unroll.log_probs for micro in seen[first : first + 2]], dim=1).sum(0)
        rollouts.append(shown.sort().values)
    assert torch.equal(*rollouts)
    assert len(rollouts[0].unique()) == 4
    assert not torch.equal(seen[4].unroll.seen.frames, seen[0].unroll.seen.frames)
    for micro in seen:
        assert micro.targets is not None
        assert abs(float(micro.targets.advantages.mean())) < 1e-5


def final(folder: Path) -> dict[str, Any]:
    step = folder / "latest"
    return load_tensors(step / "model.safetensors") | load_tensors(step / "task.safetensors")


@pytest.mark.full
@pytest.mark.parametrize(("learner", "actors"), [("vtrace", 2), ("ppo", 0)])
def test_a_run_that_was_cut_ends_with_the_same_bits_with_any_actors(learner: str, actors: int, tmp_path: Path) -> None:
    run = small(learner, steps=7)
    train(run, tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "cut", symlinks=True)
    steps = tmp_path / "cut" / "steps"
    shutil.rmtree(max(steps.iterdir()))
    (tmp_path / "cut" / "latest").unlink()
    assert len(list(steps.iterdir())) == 1
    train(replace(run, task=replace(run.task, actors=actors)), tmp_path / "cut")
    whole, found = final(tmp_path / "whole"), final(tmp_path / "cut")
    assert found.keys() == whole.keys()
    assert [name for name in whole if not torch.equal(found[name], whole[name])] == []
    assert multiprocessing.active_children() == []


def test_another_state_is_refused_and_a_stateless_environment_begins_anew() -> None:
    pytest.importorskip("gymnasium")
    task, model = ready(small())
    with pytest.raises(CheckpointError, match="not a state of environments"):
        task.load_state({})
    run = small(environment=EnvironmentConfig(name=f"{HERE}:Blinking-v0"))
    task, model = ready(run)
    task.next_batch(model, 0)
    other, _ = ready(run)
    other.load_state(task.state())
    assert "restarted" in other.report()
    assert "restarted" not in task.report()
    other.next_batch(model, 1)
    other.next_batch(model, 2)


def test_acting_and_learning_must_compute_the_same_agent() -> None:
    task, model = ready(small())
    task.next_batch(model, 0)
    task.check(model)
    whole = model._before
    model._before = lambda seen: whole(seen).roll(1, 0)  # type: ignore[method-assign]
    with pytest.raises(ConfigError, match="importance ratio of a rollout under its own policy is off by"):
        task.check(model)


def test_a_model_that_does_not_fit_the_environment_is_refused() -> None:
    run = small(environment=EnvironmentConfig(name="key_door"))
    with pytest.raises(ConfigError, match=r"model.rows is 24, must be 28; .*model.actions is 3, must be 4"):
        ready(run)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"vtrace": None}, "neither is here"),
        ({"group": 3}, "3 does not divide environments = 4"),
        ({"actors": 3}, "3 actors for 2 groups"),
        ({"micro_environments": 3}, "3 does not divide 4 unrolls"),
    ],
)
def test_settings_that_contradict_each_other(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        small(**changes)


@pytest.mark.full
def test_a_failing_environment_stops_the_run_and_leaves_its_checkpoints_whole(tmp_path: Path) -> None:
    pytest.importorskip("gymnasium")
    environment = EnvironmentConfig(name=f"{HERE}:FailingLate-v0")
    run = small(steps=9, environment=environment, actors=1)
    run = replace(run, train=replace(run.train, save_every=1))
    with pytest.raises(DataError, match="ZeroDivisionError: the ball left the universe"):
        train(run, tmp_path / "run")
    assert (tmp_path / "run" / "latest" / "task.safetensors").exists()
    assert multiprocessing.active_children() == []


def test_a_run_is_measured_like_its_last_evaluation(tmp_path: Path) -> None:
    run = small(steps=2)
    train(run, tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    valid = next(line for line in lines if line["kind"] == "valid")
    found = evaluate(tmp_path / "run")
    assert {name: valid[name] for name in found} == found
    assert found["episodes"] == 3
    assert found["loss"] == -found["return_mean"]
    assert -4 <= found["return_mean"] <= 4
    assert found["length_mean"] == 44
    assert evaluate(tmp_path / "run", limit=1)["episodes"] == 1


@pytest.mark.parametrize("changes", [{}, {"core": "lstm"}], ids=["attention", "lstm"])
def test_memory_is_estimated_from_what_autograd_keeps(changes: dict[str, Any]) -> None:
    run = small(environments=8, group=8, unroll=10)
    run = replace(run, model=replace(run.model, vision_channels=24, lstm_width=32, core_widths=(64, 32), **changes))
    task, model = ready(run)
    (micro,) = task.next_batch(model, 0)
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        task.loss(model, micro)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    rollouts = 2 * micro.unroll.seen.frames.numel()
    needed = 12 * parameters + sum(kept.values()) + rollouts
    assert 0.8 * needed < training_bytes(run) < 1.6 * needed


def test_the_defaults_need_a_learner() -> None:
    assert AgentTaskConfig(environment=EnvironmentConfig(name="catch"), vtrace=VTraceConfig()).batch == 32
