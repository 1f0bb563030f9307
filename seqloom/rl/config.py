"""Settings of environments; free of torch so that the command line stays light."""

from typing import Annotated

from seqloom.core.config import Ge, Interval, MinLen, config
from seqloom.core.errors import ConfigError

ATARI, GYMNASIUM = "ale:", "gymnasium:"


@config
class AtariConfig:
    """How an Atari game is played (IMPALA's settings)."""

    action_repeat: Annotated[int, Ge(1)] = 4
    """Frames for which an action is held; the agent sees the last one."""
    max_last_two: bool = False
    """Show the brighter of the last two frames, against sprites that flicker."""
    sticky: Annotated[float, Interval(ge=0, lt=1)] = 0.0
    """Probability that a frame repeats the action before."""
    no_ops: Annotated[int, Ge(0)] = 30
    """Most idle frames at the beginning of an episode; how many is drawn for each."""
    all_actions: bool = False
    """Give the agent all 18 actions of the console instead of those that the game uses."""
    episode_frames: Annotated[int, Ge(1)] = 108_000
    """Frames after which an episode is ended, 30 minutes."""


@config
class EnvironmentConfig:
    """What the agent acts in."""

    name: Annotated[str, MinLen(1)]
    """A built-in game (catch, key_door, cue_memory), "ale:Pong" for an Atari game, or "gymnasium:Some/Name-v0"."""
    atari: AtariConfig | None = None
    """Other settings than the usual ones of an Atari game."""

    def __post_init__(self) -> None:
        if self.atari is not None and not self.name.startswith(ATARI):
            raise ConfigError(f"task.environment.atari: '{self.name}' is not an Atari game; leave these settings out")
