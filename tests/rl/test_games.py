"""The built-in games: gymnasium's own checker, states that can be put back, and what perfect play brings."""

from collections import deque

import numpy as np
import pytest

from seqloom.core.errors import CheckpointError, ConfigError
from seqloom.rl.config import AtariConfig, EnvironmentConfig
from seqloom.rl.environment import Frame, make_environment
from seqloom.rl.game import Game
from seqloom.rl.games import GAMES, MOVES, Catch, CueMemory, KeyDoor
from seqloom.rl.gymnasium_bridge import to_gymnasium

names = pytest.mark.parametrize("name", GAMES)


@names
def test_gymnasiums_checker_has_nothing_to_say(name: str) -> None:
    pytest.importorskip("gymnasium")
    from gymnasium.utils.env_checker import check_env

    check_env(to_gymnasium(GAMES[name]()), skip_render_check=True)


@names
def test_a_game_goes_on_from_a_state_as_if_it_had_never_stopped(name: str) -> None:
    draw = np.random.default_rng(0)
    game, other = GAMES[name](), GAMES[name]()
    for seed in range(20):
        game.reset(seed=seed)
        actions = draw.integers(len(game.actions), size=game.longest).tolist()
        cut = int(draw.integers(game.longest))
        ended = False
        for step, action in enumerate(actions):
            if step == cut:
                other.reset(seed=99)
                other.set_state(game.get_state())
                np.testing.assert_array_equal(game.paint(), other.paint())
            found = game.step(action)
            if step >= cut:
                then = other.step(action)
                np.testing.assert_array_equal(found[0], then[0])
                assert found[1:] == then[1:]
            ended = found[2] or found[3]
            if ended:
                break
        assert ended


def test_a_foreign_state_is_refused() -> None:
    game = CueMemory()
    game.reset(seed=0)
    with pytest.raises(CheckpointError, match="not a state of the game Catch"):
        Catch().set_state(game.get_state())


def play(game: Game, seed: int) -> tuple[float, int]:
    """Return and length of an episode by whoever knows everything."""
    game.reset(seed=seed)
    total, steps = 0.0, 0
    while True:
        _, reward, terminated, truncated, _ = game.step(EXPERTS[type(game)](game))
        total, steps = total + reward, steps + 1
        if terminated or truncated:
            return total, steps


def catch_expert(game: Game) -> int:
    assert isinstance(game, Catch)
    column, drift = game._column, game._drift
    for _ in range(game.cells - 1 - game._row):
        drift = drift if 0 <= column + drift < game.cells else -drift
        column += drift
    return 1 + int(np.sign(min(max(column, 1), game.cells - 2) - game._paddle))


def key_door_expert(game: Game) -> int:
    assert isinstance(game, KeyDoor)
    target = game._goal if game._has_key else game._key
    ends, first = deque([(game._y, game._x)]), {(game._y, game._x): -1}
    while target not in first:
        y, x = ends.popleft()
        for action, (dy, dx) in enumerate(MOVES):
            place = y + dy, x + dx
            if place not in first and game._world[place] != game.wall:
                first[place] = action if first[y, x] < 0 else first[y, x]
                ends.append(place)
    return first[target]


def cue_expert(game: Game) -> int:
    assert isinstance(game, CueMemory)
    return game._order.index(game._cue)


EXPERTS = {Catch: catch_expert, KeyDoor: key_door_expert, CueMemory: cue_expert}


@names
def test_perfect_play_brings_the_best_return_within_the_longest_episode(name: str) -> None:
    game = GAMES[name]()
    played = [play(game, seed) for seed in range(100)]
    assert {total for total, _ in played} == {game.best}
    assert max(steps for _, steps in played) <= game.longest


def test_the_cue_is_gone_when_it_is_asked_for_and_nothing_before_counts() -> None:
    game = CueMemory()
    for seed in range(8):
        frames: list[Frame] = [game.reset(seed=seed)[0]]
        over = False
        while not over:
            frame, reward, over, _, _ = game.step((cue_expert(game) + 1) % 4)
            frames.append(frame)
            assert reward == 0.0
        assert frames[0].any()
        assert not frames[0][:, 4:].any()
        assert 2 <= sum(not frame.any() for frame in frames) <= 4
        assert all(not frame[:, :-4].any() for frame in frames[1:])


@pytest.mark.parametrize("name", ["catsh", "ale:Pung", "gymnasium:Nothing-v0"])
def test_an_unknown_environment_is_named(name: str) -> None:
    pytest.importorskip("gymnasium")
    pytest.importorskip("ale_py")
    with pytest.raises(ConfigError, match=name.split(":")[-1]):
        make_environment(EnvironmentConfig(name=name))


def test_settings_of_atari_are_refused_elsewhere() -> None:
    with pytest.raises(ConfigError, match="'catch' is not an Atari game"):
        EnvironmentConfig(name="catch", atari=AtariConfig())
