"""What an environment is: gymnasium's API, without gymnasium.

    frame, facts = environment.reset(seed=...)
    frame, reward, terminated, truncated, facts = environment.step(action)

A frame is a uint8 array [rows, columns, 3], an action a whole number from 0. The built-in games are such objects as
they are; gymnasium's own environments and Atari games are fitted to it by `gymnasium_bridge.py` and `atari.py`.

An environment that can be put back exactly gives its state as tensors; then a run that was stopped goes on bit for bit.
"""

from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from torch import Tensor

from seqloom.core.errors import ConfigError
from seqloom.rl.config import ATARI, GYMNASIUM, AtariConfig, EnvironmentConfig

Frame = np.ndarray[Any, np.dtype[np.uint8]]


class Facts(NamedTuple):
    """What an agent must fit, and a person wants to know."""

    rows: int
    columns: int
    actions: tuple[str, ...]
    has_state: bool
    longest: int | None
    """Most steps of an episode; None if nobody knows."""
    best: float | None
    """Return of perfect play; None if nobody knows."""


@runtime_checkable
class Environment(Protocol):
    """One copy of an environment."""

    @property
    def facts(self) -> Facts: ...

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Frame, dict[str, Any]]:
        """Begin an episode, which the seed decides."""
        ...

    def step(self, action: int) -> tuple[Frame, float, bool, bool, dict[str, Any]]:
        """Act; the frame that follows, the reward, and whether the episode came to its end or was cut off."""
        ...

    def get_state(self) -> dict[str, Tensor]:
        """Everything that decides what follows; only where `facts.has_state`."""
        ...

    def set_state(self, state: dict[str, Tensor]) -> None:
        """Go back to a state.

        Raises:
            CheckpointError: it is not a state of this environment.
        """
        ...

    def close(self) -> None: ...


def make_environment(config: EnvironmentConfig) -> Environment:
    """Open an environment by name.

    Raises:
        ConfigError: there is none of this name, its spaces do not fit, or the package that brings it is missing.
    """
    name = config.name
    if name.startswith(ATARI):
        from seqloom.rl.atari import AtariGame

        return AtariGame(name.removeprefix(ATARI), config.atari or AtariConfig())
    if name.startswith(GYMNASIUM):
        from seqloom.rl.gymnasium_bridge import FromGymnasium

        return FromGymnasium(name.removeprefix(GYMNASIUM))
    from seqloom.rl.games import GAMES

    if name not in GAMES:
        raise ConfigError(
            f"task.environment.name: unknown environment '{name}'; known: {', '.join(GAMES)}, {ATARI}GAME (such as "
            f"ale:Pong) and {GYMNASIUM}NAME (any registered environment with image frames)"
        )
    return GAMES[name]()
