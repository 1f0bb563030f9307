"""The agent: counts, shapes, unrolls against steps, and that nothing mixes the axes of an image."""

from dataclasses import replace

import pytest
import torch

from seqloom.core.errors import ConfigError
from seqloom.rl.unroll import Seen
from seqloom.systems.attention_agent.budget import budget
from seqloom.systems.attention_agent.config import AgentConfig
from seqloom.systems.attention_agent.model import AgentState, AttentionAgent
from tests.systems.attention_agent.small import small

VARIANTS = {
    "attention": {},
    "lstm": {"core": "lstm"},
    "feed_forward": {"core": "feed_forward"},
    "fixed": {"query_kind": "fixed"},
    "one_query": {"queries": 1, "key_channels": 5},
    "cos": {"basis": "cos"},
    "no_basis": {"basis": "none"},
    "sum": {"weighting": "sum"},
    "scaled": {"scale_logits": True},
}
variants = pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)


def agent(**changes: object) -> AttentionAgent:
    torch.manual_seed(1)
    return replace(small().model, **changes).build()  # type: ignore[arg-type]


def seen(steps: int, batch: int, rows: int = 24, columns: int = 24) -> Seen:
    torch.manual_seed(2)
    begins = torch.zeros(steps, batch, dtype=torch.bool)
    begins[0] = True
    begins[3:4, 1] = True
    return Seen(
        torch.randint(256, (steps, batch, rows, columns, 3), dtype=torch.uint8),
        3 * torch.randn(steps, batch),
        torch.randint(3, (steps, batch)),
        begins,
    )


def begin(model: AttentionAgent, batch: int) -> AgentState:
    return AgentState(**model.initial_state(batch))


def test_the_papers_sizes_on_atari_frames() -> None:
    config = AgentConfig()
    model = config.build()
    assert sum(parameter.numel() for parameter in model.parameters()) == 2_191_379
    state = begin(model, 1)
    assert state.vision_h.shape == (1, 128, 27, 20)
    assert state.core_h.shape == (1, 256)
    kinds = torch.float32, torch.int64, torch.bool
    black = Seen(torch.zeros(1, 1, 210, 160, 3, dtype=torch.uint8), *(torch.zeros(1, 1, dtype=kind) for kind in kinds))
    with torch.no_grad():
        output = model(black, state, look=True)
    assert output.logits.shape == (1, 1, 18)
    assert output.glimpses is not None
    assert output.glimpses.maps.shape == (1, 1, 4, 27, 20)
    assert output.glimpses.answers.shape == (1, 1, 4, 184)
    assert 0.95e9 < budget(config).flops_per_frame < 1.1e9  # 0.48 G multiply-adds of the ConvLSTM, and a little


@variants
def test_an_unroll_is_its_steps(changes: dict[str, object]) -> None:
    model, whole = agent(**changes), seen(6, 3)
    state = begin(model, 3)
    expected = model(whole, state, look=True)
    for t in range(6):
        step = model(Seen(*(part[t : t + 1] for part in whole)), state, look=True)
        state = step.state
        torch.testing.assert_close(step.logits[0], expected.logits[t])
        torch.testing.assert_close(step.values[0], expected.values[t])
        if expected.glimpses is not None:
            torch.testing.assert_close(step.glimpses.maps[0], expected.glimpses.maps[t])
    torch.testing.assert_close(state, expected.state)


@variants
def test_an_episode_begins_as_if_nothing_had_been_before(changes: dict[str, object]) -> None:
    model, whole = agent(**changes), seen(6, 3)
    expected = model(whole, begin(model, 3)).logits[3:, 1:2]
    later = Seen(*(part[3:, 1:2] for part in whole))
    stale = AgentState(*(torch.randn_like(part) for part in begin(model, 1)))
    torch.testing.assert_close(model(later, stale).logits, expected)
    foreign = later._replace(rewards=later.rewards.clone(), actions=later.actions.clone())
    foreign.rewards[0], foreign.actions[0] = 1.0, (later.actions[0] + 1) % 3
    torch.testing.assert_close(model(foreign, begin(model, 1)).logits, expected)
    torch.testing.assert_close(stale.reset(torch.tensor([True])), begin(model, 1))


@variants
def test_parameters_are_counted_and_all_learn(changes: dict[str, object]) -> None:
    model = agent(**changes)
    output = model(seen(4, 2), begin(model, 2))
    (output.logits.square().sum() + output.values.square().sum()).backward()
    assert budget(model.config).parameters == sum(parameter.numel() for parameter in model.parameters())
    idle = [name for name, parameter in model.named_parameters() if parameter.grad is None or not parameter.grad.any()]
    assert idle == []


def test_a_bright_pixel_is_seen_where_it_is() -> None:
    config = AgentConfig(rows=80, columns=48, actions=3, vision_channels=12, basis="none")
    torch.manual_seed(0)
    model = config.build()
    assert config.image == (10, 6)
    frames = torch.zeros(1, 3, 80, 48, 3, dtype=torch.uint8)
    frames[0, 1, 60, 12], frames[0, 2, 12, 44] = 255, 255
    one = Seen(frames, torch.zeros(1, 3), torch.zeros(1, 3, dtype=torch.int64), torch.ones(1, 3, dtype=torch.bool))
    output = model(one, begin(model, 3), look=True)
    for changed in (output.state.vision_h, output.glimpses.logits_what[0]):
        difference = (changed[1:] - changed[:1]).abs().sum(1)
        for image, (row, column) in zip(difference, ((7, 1), (1, 5)), strict=True):
            assert image.any()
            near = image[max(0, row - 2) : row + 3, max(0, column - 2) : column + 3].sum()
            torch.testing.assert_close(near, image.sum())  # and nowhere else


def test_queries_come_from_the_memory_alone_unless_they_are_fixed() -> None:
    whole = seen(1, 2)
    whole.begins.zero_()
    for kind, same in (("top_down", False), ("fixed", True)):
        model = agent(query_kind=kind)
        state = begin(model, 2)
        other = state._replace(core_h=torch.randn_like(state.core_h))
        looks = [model(whole, each, look=True).glimpses.logits_where for each in (state, other)]
        assert torch.equal(*looks) is same
    model = agent()
    dark = whole._replace(frames=torch.zeros_like(whole.frames))
    looks = [model(each, begin(model, 2), look=True).glimpses.logits_where for each in (whole, dark)]
    assert torch.equal(*looks)


def test_what_leaves_no_values_is_refused() -> None:
    with pytest.raises(ConfigError, match="8 of 8 vision channels leave no values"):
        AgentConfig(vision_channels=8)
