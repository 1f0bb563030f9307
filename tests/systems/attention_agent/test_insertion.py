"""Interventions on frames: what is pasted and covered, and that only it explains a difference."""

import pytest
import torch

from seqloom.rl.unroll import Seen
from seqloom.systems.attention_agent.insertion import (
    Insertion,
    covered_frames,
    cut,
    divergence,
    insert,
    mask_attended,
    place_for,
)
from seqloom.systems.attention_agent.model import AgentState, AttentionAgent
from seqloom.systems.attention_agent.play import Moment, moments
from tests.systems.attention_agent.excited import excited


@pytest.fixture(scope="module")
def scene() -> tuple[AttentionAgent, list[Moment]]:
    player = excited()
    return player.model, list(moments(player, 0))


def unroll(some: list[Moment]) -> Seen:
    return Seen(*(torch.cat(parts) for parts in zip(*(moment.seen for moment in some), strict=True)))


def test_without_a_difference_there_is_no_effect(scene: tuple[AttentionAgent, list[Moment]]) -> None:
    model, played = scene
    seen = unroll(played[10:15])
    black = torch.zeros(2, 2, 3, dtype=torch.uint8)
    row = next(r for r in range(22) if not seen.frames[:, 0, r : r + 2, 0:2].any())
    found = insert(model, seen, played[10].state, black, row, 0)
    assert torch.equal(found.mass, found.mass_before)
    assert not found.kl.any()
    assert found.rise == pytest.approx(1.0)
    assert not found.risen


def test_a_sprite_changes_what_is_seen_and_what_was_measured_before_is_what_was_played(
    scene: tuple[AttentionAgent, list[Moment]],
) -> None:
    model, played = scene
    sprite = torch.full((4, 4, 3), 255, dtype=torch.uint8)
    seen = unroll(played[10:15])
    untouched = seen.frames.clone()
    found = insert(model, seen, played[10].state, sprite, 4, 8)
    assert torch.equal(seen.frames, untouched)
    assert found.mass.shape == (5, model.config.queries)
    rows, columns = model.config.image
    for t, moment in enumerate(played[10:15]):
        map_ = moment.glimpse.maps
        expected = map_[:, 4 * rows // 24 : -(-8 * rows // 24), 8 * columns // 24 : -(-12 * columns // 24)]
        torch.testing.assert_close(found.mass_before[t], expected.sum((-2, -1)))
    assert (found.kl > 0).all()
    assert not torch.equal(found.mass, found.mass_before)


def test_only_a_rise_to_more_than_a_uniform_share_counts() -> None:
    one = torch.ones(5, 2)
    for before, mass, risen in ((0.1, 0.5, True), (0.2, 0.5, False), (1e-6, 1e-4, False)):
        assert Insertion(mass * one, before * one, 0.25, torch.zeros(5)).risen is risen


def test_divergence_is_torchs(scene: tuple[AttentionAgent, list[Moment]]) -> None:
    _, played = scene
    one, other = played[3].output, played[20].output
    log_p, log_q = (each.logits[0, 0].log_softmax(-1) for each in (one, other))
    expected = torch.nn.functional.kl_div(log_q, log_p, log_target=True, reduction="sum")
    torch.testing.assert_close(divergence(one, other)[0], expected)


def test_covering_takes_the_usual_colour_and_only_the_region() -> None:
    frames = torch.full((1, 1, 8, 6, 3), 7, dtype=torch.uint8)
    frames[0, 0, 1, 1] = 200
    frames[0, 0, 6, 5] = 100
    region = torch.zeros(4, 3, dtype=torch.bool)
    region[0, 0] = True
    found = covered_frames(frames, region)
    assert found[0, 0, 1, 1].tolist() == [7, 7, 7]
    assert found[0, 0, 6, 5].tolist() == [100, 100, 100]
    assert int((found != frames).any(-1).sum()) == 1


class Greedy(AttentionAgent):
    """Looks at the brightest place and decides by it alone."""

    def forward(self, seen: Seen, state: AgentState, look: bool = False):  # type: ignore[no-untyped-def, override]
        output = super().forward(seen, state, look=True)
        bright = torch.nn.functional.adaptive_max_pool2d(seen.frames[:, :, :, :, 0].float() / 255, self.config.image)
        maps = (50 * bright).flatten(-2).softmax(-1).view_as(bright)[:, :, None].expand_as(output.glimpses.maps)
        logits = torch.stack([bright.amax((-2, -1)), torch.zeros(bright.shape[:2])], dim=-1)
        return output._replace(logits=logits, glimpses=output.glimpses._replace(maps=maps))


def test_covering_what_is_attended_matters_more_than_another_place() -> None:
    model = Greedy(excited().model.config)
    frames = torch.zeros(1, 1, 24, 24, 3, dtype=torch.uint8)
    frames[0, 0, 8:10, 4:6] = 255
    zeros = torch.zeros(1, 1)
    seen = Seen(frames, zeros, zeros.long(), zeros.bool())
    state = AgentState(**model.initial_state(1))
    found = mask_attended(model, seen, state, 1, torch.Generator().manual_seed(0))
    assert found is not None
    assert found.attended > 0.1
    assert found.other == 0.0
    places = model.config.image[0] * model.config.image[1]
    assert mask_attended(model, seen, state, places, torch.Generator()) is None


def test_sprites_are_cut_and_find_a_free_place() -> None:
    frame = torch.zeros(6, 8, 3, dtype=torch.uint8)
    frame[2:4, 3:6] = 9
    sprite = cut(frame, (frame > 0).any(-1))
    assert sprite.shape == (2, 3, 3)
    assert (sprite == 9).all()
    taken = torch.ones(6, 8, dtype=torch.bool)
    taken[4:6, 1:4] = False
    draw = torch.Generator().manual_seed(0)
    assert place_for(sprite, taken, draw) == (4, 1)
    assert place_for(sprite, torch.ones(6, 8, dtype=torch.bool), draw) is None
    assert place_for(torch.zeros(9, 9, 3, dtype=torch.uint8), taken, draw) is None
