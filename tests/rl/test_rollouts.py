"""Rollouts: the same bits in any number of processes and from any state, and a failing environment's last words."""

import multiprocessing
from collections.abc import Iterator
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from seqloom.core.errors import DataError
from seqloom.rl.actors import ActorRollouts
from seqloom.rl.config import EnvironmentConfig
from seqloom.rl.rollouts import LocalRollouts, RolloutPlan, Rollouts
from seqloom.rl.runner import Collected, drawn
from seqloom.rl.unroll import Seen

HERE = "gymnasium:tests.rl.pixel_environments"


class Walker(nn.Module):
    """The smallest agent with a memory: it mixes what it sees into what it remembers."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.look, self.choose = nn.Linear(24 * 24 * 3 + 2, 4), nn.Linear(4, 3)

    def initial_state(self, batch: int) -> dict[str, Tensor]:
        return {"memory": torch.zeros(batch, 4)}

    @torch.no_grad()
    def act(self, seen: Seen, state: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        kept = (~seen.begins[0]).float()[:, None]
        before = torch.stack([seen.rewards[0], seen.actions[0].float()], dim=1) * kept
        inputs = torch.cat([seen.frames[0].flatten(1) / 255, before], dim=1)
        memory = torch.tanh(state["memory"] * kept + self.look(inputs))
        return 3 * self.choose(memory), {"memory": memory}


def plan(name: str = "catch") -> RolloutPlan:
    return RolloutPlan(environment=EnvironmentConfig(name=name), environments=6, group=2, steps=9, seed=3)


def same(one: Collected, other: Collected) -> bool:
    pairs = zip(one.unroll.tensors().values(), other.unroll.tensors().values(), strict=True)
    return all(torch.equal(*pair) for pair in pairs) and one[1:] == other[1:]


def collect(rollouts: Rollouts, agent: Walker, numbers: range) -> list[Collected]:
    found = []
    for number in numbers:
        rollouts.launch(agent, number)
        found.append(rollouts.take())
    return found


def test_an_unroll_says_what_led_to_what() -> None:
    agent, rollouts = Walker(), LocalRollouts(plan())
    first, second = collect(rollouts, agent, range(2))
    seen = first.unroll.seen
    assert seen.frames.shape == (10, 6, 24, 24, 3)
    assert seen.begins[0].all()
    for now, later in zip(seen, second.unroll.seen, strict=True):
        torch.testing.assert_close(now[-1], later[0])  # the last frame is the first one of the next unroll
    state, steps = first.unroll.state, []
    for t in range(9):
        logits, state = agent.act(Seen(*(part[t : t + 1] for part in seen)), state)
        steps.append(logits.log_softmax(-1).gather(1, seen.actions[t + 1][:, None])[:, 0])
    torch.testing.assert_close(torch.stack(steps), first.unroll.log_probs)
    torch.testing.assert_close(state["memory"], second.unroll.state["memory"])


def test_episodes_end_begin_and_are_counted() -> None:
    rollouts = LocalRollouts(plan())
    found = collect(rollouts, Walker(), range(11))  # 99 steps: two episodes of 44
    assert [length for part in found for length in part.lengths] == 12 * [44]
    rewards = torch.cat([part.unroll.seen.rewards[1:] for part in found])[:88]
    assert sorted(value for part in found for value in part.returns) == sorted(
        rewards[:44].sum(0).tolist() + rewards[44:].sum(0).tolist()
    )
    begins = torch.cat([part.unroll.seen.begins[:-1] for part in found])
    assert begins.nonzero()[:, 0].unique().tolist() == [0, 44, 88]


def test_draws_have_the_probabilities_of_the_policy() -> None:
    p = torch.tensor([0.1, 0.6, 0.3])
    draws = (torch.arange(1000) + 0.5) / 1000
    assert drawn(p.log().expand(1000, -1), draws).bincount().tolist() == [100, 600, 300]


@pytest.mark.full
def test_actor_processes_change_no_bit_and_go_on_from_the_same_state() -> None:
    agent = Walker()
    local, remote = LocalRollouts(plan()), ActorRollouts(plan(), 2, Walker, agent.state_dict())
    for number in range(2):
        assert same(
            *collect(local, agent, range(number, number + 1)), *collect(remote, agent, range(number, number + 1))
        )
        with torch.no_grad():
            agent.look.weight.mul_(1.5)
    local.launch(agent, 2)
    remote.launch(agent, 2)
    state, expected = remote.state(), local.state()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], expected[name]) for name in state)
    further = [local.take(), *collect(local, agent, range(3, 5))]
    remote.take()
    collect(remote, agent, range(7, 8))
    remote.load_state(state)
    for one, other in zip(further, [remote.take(), *collect(remote, agent, range(3, 5))], strict=True):
        assert same(one, other)
    remote.close()
    assert multiprocessing.active_children() == []


def test_fresh_rollouts_go_on_from_a_state() -> None:
    agent, first = Walker(), LocalRollouts(plan("cue_memory"))
    collect(first, agent, range(3))
    second = LocalRollouts(plan("cue_memory"))
    second.load_state(first.state())
    for one, other in zip(collect(first, agent, range(3, 6)), collect(second, agent, range(3, 6)), strict=True):
        assert same(one, other)


@pytest.fixture
def failing(request: pytest.FixtureRequest) -> Iterator[partial[Rollouts]]:
    pytest.importorskip("gymnasium")
    weights = Walker().state_dict()
    yield {
        "here": partial(LocalRollouts),
        "actors": partial(ActorRollouts, count=2, build=Walker, weights=weights),
    }[request.param]
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize("failing", ["here", pytest.param("actors", marks=pytest.mark.full)], indirect=True)
def test_an_environment_that_fails_ends_the_run_with_its_trace(failing: partial[Rollouts]) -> None:
    rollouts = failing(plan(f"{HERE}:Failing-v0"))
    with pytest.raises(DataError, match=r"episode 0, step 4\) failed: ZeroDivisionError(.|\n)*in step(.|\n)*universe"):
        collect(rollouts, Walker(), range(1))


def test_a_frame_of_another_size_is_refused() -> None:
    pytest.importorskip("gymnasium")
    with pytest.raises(DataError, match=r"\(23, 24, 3\); promised was uint8 \(24, 24, 3\)"):
        collect(LocalRollouts(plan(f"{HERE}:Shrinking-v0")), Walker(), range(1))


@pytest.mark.full
def test_an_actor_that_is_killed_is_missed() -> None:
    agent = Walker()
    rollouts = ActorRollouts(plan(), 2, Walker, agent.state_dict())
    multiprocessing.active_children()[0].kill()
    with pytest.raises(DataError, match="ended without a word"):
        collect(rollouts, agent, range(2))
    assert multiprocessing.active_children() == []
