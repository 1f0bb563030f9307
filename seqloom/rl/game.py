"""What the built-in games have in common: all chance is drawn when an episode begins.

So an episode is a pure function of its seed and the actions, and the state of a game is its seed and a few whole
numbers that change. Whatever the seed decides once (a map, an order) is drawn again when a state is set.
"""

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from seqloom.core.errors import CheckpointError
from seqloom.rl.environment import Facts, Frame


class Game(ABC):
    """A game of one player on a small RGB image; games fill in the five methods at the end."""

    rows: ClassVar[int] = 24
    columns: ClassVar[int] = 24
    actions: ClassVar[tuple[str, ...]]
    longest: ClassVar[int]
    best: ClassVar[float]

    def __init__(self) -> None:
        self._seed, self._steps = -1, 0

    @property
    def facts(self) -> Facts:
        return Facts(self.rows, self.columns, self.actions, True, self.longest, self.best)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Frame, dict[str, Any]]:
        """Begin an episode; without a seed the one after the last."""
        self._seed, self._steps = self._seed + 1 if seed is None else seed, 0
        self.begin(np.random.default_rng(self._seed))
        return self.paint(), {}

    def step(self, action: int) -> tuple[Frame, float, bool, bool, dict[str, Any]]:
        if not 0 <= action < len(self.actions):
            raise ValueError(f"action {action} of {len(self.actions)}")
        self._steps += 1
        reward, over = self.advance(int(action))
        return self.paint(), reward, over, not over and self._steps >= self.longest, {}

    def get_state(self) -> dict[str, Tensor]:
        return {"numbers": torch.tensor([self._seed, self._steps, *self.remember()], dtype=torch.int64)}

    def set_state(self, state: dict[str, Tensor]) -> None:
        """
        Raises:
            CheckpointError: it is not a state of this game.
        """
        try:
            self._seed, self._steps, *numbers = state["numbers"].tolist()
            self.begin(np.random.default_rng(self._seed))
            self.recall(numbers)
        except (KeyError, ValueError, IndexError) as error:
            raise CheckpointError(f"not a state of the game {type(self).__name__}: {error}") from error

    def close(self) -> None:  # noqa: B027  # holds nothing open, and no game has to
        pass

    @abstractmethod
    def begin(self, draw: np.random.Generator) -> None:
        """Set up an episode."""

    @abstractmethod
    def advance(self, action: int) -> tuple[float, bool]:
        """Act; reward, and whether the episode is over."""

    @abstractmethod
    def paint(self) -> Frame:
        """The frame as it is now."""

    @abstractmethod
    def remember(self) -> list[int]:
        """What has changed since `begin`."""

    @abstractmethod
    def recall(self, numbers: list[int]) -> None:
        """Take over what `remember` gave, after `begin` with the same seed."""
