"""Atari games through the Arcade Learning Environment itself, whose state can be taken out and put back.

Needs the extra atari, which brings the games along. An action is held for `action_repeat` frames; an episode begins
with a drawn number of idle frames, since a game without chance would otherwise always be the same.
Paper: attention-augmented agent, section 3 (settings of IMPALA).
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from seqloom.core.errors import CheckpointError, ConfigError
from seqloom.core.extras import require
from seqloom.rl.config import AtariConfig
from seqloom.rl.environment import Facts, Frame

NO_OP = 0


class AtariGame:
    """One game."""

    def __init__(self, game: str, config: AtariConfig) -> None:
        """
        Args:
            game: in any of the usual spellings: Pong, MsPacman, ms_pacman.
        Raises:
            ConfigError: there is no such game, or the package is missing.
        """
        self._package = require("atari", "ale_py")
        self._config = config
        self._package.ALEInterface.setLoggerMode(self._package.LoggerMode.Error)
        self._rom = _find(game, require("atari", "ale_py.roms"))
        self._open(0)
        self._start = self._ale.cloneState(include_rng=True)
        actions = self._ale.getLegalActionSet() if config.all_actions else self._ale.getMinimalActionSet()
        self._actions = list(actions)
        rows, columns = self._ale.getScreenDims()
        longest = -(-config.episode_frames // config.action_repeat)
        names = tuple(action.name.lower() for action in self._actions)
        self.facts = Facts(int(rows), int(columns), names, True, longest, None)

    def _open(self, seed: int) -> None:
        """A console of its own: its generator is seeded when a game is loaded."""
        self._ale = self._package.ALEInterface()
        self._ale.setInt("random_seed", seed)
        self._ale.setFloat("repeat_action_probability", self._config.sticky)
        self._ale.loadROM(self._rom)
        self._ale.reset_game()
        self._frames = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Frame, dict[str, Any]]:
        """Begin an episode; without a seed one with the same beginning as seed 0."""
        seed = seed or 0
        if self._config.sticky > 0:
            self._open(seed % 2**31)
        else:
            self._ale.restoreState(self._start)  # as after opening, and much faster
            self._frames = 0
        for _ in range(int(np.random.default_rng(seed).integers(self._config.no_ops + 1))):
            self._ale.act(NO_OP)
            if self._ale.game_over():
                self._ale.reset_game()
        return self._ale.getScreenRGB(), {}

    def step(self, action: int) -> tuple[Frame, float, bool, bool, dict[str, Any]]:
        reward, before = 0.0, None
        for _ in range(self._config.action_repeat):
            if self._config.max_last_two:
                before = self._ale.getScreenRGB()
            reward += self._ale.act(self._actions[action])
            self._frames += 1
            if self._ale.game_over() or self._frames >= self._config.episode_frames:
                break
        frame = self._ale.getScreenRGB()
        if before is not None:
            frame = np.maximum(frame, before)
        over = bool(self._ale.game_over())
        return frame, reward, over, not over and self._frames >= self._config.episode_frames, {}

    def get_state(self) -> dict[str, Tensor]:
        console = np.frombuffer(self._ale.cloneState(include_rng=True).__getstate__(), dtype=np.uint8)
        return {"console": torch.from_numpy(console.copy()), "frames": torch.tensor([self._frames])}

    def set_state(self, state: dict[str, Tensor]) -> None:
        """
        Raises:
            CheckpointError: it is not a state of this game.
        """
        try:
            console = self._package.ALEState.__new__(self._package.ALEState)
            console.__setstate__(state["console"].numpy().tobytes())
            self._ale.restoreState(console)
            self._frames = int(state["frames"])
        except (KeyError, RuntimeError, TypeError) as error:
            raise CheckpointError(f"not a state of the game '{self._rom}': {error}") from error

    def close(self) -> None:
        pass


def _find(game: str, roms: Any) -> str:
    """The file of a game, whatever the spelling of its name."""
    plain = {name.replace("_", ""): name for name in roms.get_all_rom_ids()}
    name = plain.get(game.replace("_", "").lower())
    if name is None:
        raise ConfigError(f"task.environment.name: no Atari game '{game}'; known: {', '.join(sorted(plain.values()))}")
    return str(roms.get_rom_path(name))
