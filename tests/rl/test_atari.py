"""Atari games: an episode is a function of its seed, and goes on from a state bit for bit."""

import numpy as np
import pytest

from seqloom.rl.atari_scores import human_normalised
from seqloom.rl.config import AtariConfig, EnvironmentConfig
from seqloom.rl.environment import Environment, make_environment

pytest.importorskip("ale_py")


def pong(**settings: object) -> Environment:
    return make_environment(EnvironmentConfig(name="ale:Pong", atari=AtariConfig(**settings)))  # type: ignore[arg-type]


def test_a_game_goes_on_from_a_state_as_if_it_had_never_stopped() -> None:
    game, other = pong(sticky=0.25, max_last_two=True), pong(sticky=0.25, max_last_two=True)
    actions = np.random.default_rng(0).integers(6, size=60).tolist()
    game.reset(seed=5)
    for action in actions[:30]:
        game.step(action)
    other.reset(seed=6)
    other.set_state(game.get_state())
    for action in actions:
        found, then = game.step(action), other.step(action)
        np.testing.assert_array_equal(found[0], then[0])
        assert found[1:] == then[1:]


def test_the_seed_decides_the_beginning() -> None:
    game = pong()
    starts = []
    for seed in (1, 2, 1):
        game.reset(seed=seed)
        starts.append(game.get_state()["console"].tolist())
        game.step(2)
    assert starts[0] == starts[2] != starts[1]
    assert game.facts[:2] == (210, 160)
    assert game.facts.actions[:2] == ("noop", "fire")


def test_an_episode_is_cut_off_at_its_limit() -> None:
    game = pong(episode_frames=10, no_ops=0)
    game.reset(seed=0)
    assert [game.step(0)[2:4] for _ in range(3)] == [(False, False), (False, False), (False, True)]


def test_scores_on_the_scale_of_people() -> None:
    assert human_normalised("Pong", 14.6) == 1.0
    assert human_normalised("SpaceInvaders", 148.0) == 0.0
    assert human_normalised("Adventure", 1.0) is None
