"""The two ways across to gymnasium: its environments come in by name, the built-in games go out as its environments.

Needs the extra rl. An environment of gymnasium has no state that could be taken out and put back, so a run that is
resumed begins fresh episodes in it.
"""

from typing import Any

from torch import Tensor

from seqloom.core.errors import ConfigError
from seqloom.core.extras import require
from seqloom.rl.environment import Environment, Facts, Frame


class FromGymnasium:
    """A registered environment of gymnasium, if its frames are RGB images and its actions a choice."""

    def __init__(self, name: str) -> None:
        """
        Raises:
            ConfigError: there is no such environment, or its spaces do not fit; what they are and must be is said.
        """
        gymnasium = require("rl", "gymnasium")
        try:
            self._inner = gymnasium.make(name, disable_env_checker=True)
        except (gymnasium.error.Error, ImportError, TypeError) as error:
            raise ConfigError(f"task.environment.name: gymnasium cannot make '{name}': {error}") from error
        self.facts = _facts(name, self._inner, gymnasium.spaces)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Frame, dict[str, Any]]:
        frame, facts = self._inner.reset(seed=seed, options=options)
        return frame, facts

    def step(self, action: int) -> tuple[Frame, float, bool, bool, dict[str, Any]]:
        frame, reward, terminated, truncated, facts = self._inner.step(action)
        return frame, float(reward), bool(terminated), bool(truncated), facts

    def get_state(self) -> dict[str, Tensor]:
        raise AssertionError("environments of gymnasium have no state")

    def set_state(self, state: dict[str, Tensor]) -> None:
        raise AssertionError("environments of gymnasium have no state")

    def close(self) -> None:
        self._inner.close()


def _facts(name: str, environment: Any, spaces: Any) -> Facts:
    seen, choice = environment.observation_space, environment.action_space
    if not (isinstance(seen, spaces.Box) and seen.dtype == "uint8" and len(seen.shape) == 3 and seen.shape[-1] == 3):
        raise ConfigError(
            f"task.environment.name: '{name}' shows {seen}; needed is an image, Box of uint8 and shape (rows, columns, "
            "3). A wrapper of gymnasium, such as AddRenderObservation, may give one"
        )
    if not (isinstance(choice, spaces.Discrete) and choice.start == 0):
        raise ConfigError(
            f"task.environment.name: '{name}' has the actions {choice}; needed is a choice, Discrete(n) that starts at "
            "0"
        )
    spec = environment.spec
    names = tuple(f"action {number}" for number in range(int(choice.n)))
    longest = spec.max_episode_steps if spec is not None else None
    return Facts(seen.shape[0], seen.shape[1], names, False, longest, None)


def to_gymnasium(game: Environment) -> Any:
    """One of the built-in games as a `gymnasium.Env`, for whatever else works with those.

    Raises:
        ConfigError: gymnasium is not installed.
    """
    gymnasium = require("rl", "gymnasium")
    facts = game.facts

    class GameEnv(gymnasium.Env):  # type: ignore[misc, name-defined]
        """Gymnasium's API over a game; episodes are drawn from gymnasium's generator."""

        metadata = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012  # gymnasium's own way
        render_mode = "rgb_array"
        observation_space = gymnasium.spaces.Box(0, 255, (facts.rows, facts.columns, 3), "uint8")
        action_space = gymnasium.spaces.Discrete(len(facts.actions))

        def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Frame, Any]:
            super().reset(seed=seed)
            self._frame, found = game.reset(seed=int(self.np_random.integers(2**31)))
            return self._frame, found

        def step(self, action: Any) -> tuple[Frame, float, bool, bool, dict[str, Any]]:
            self._frame, reward, terminated, truncated, found = game.step(int(action))
            return self._frame, reward, terminated, truncated, found

        def render(self) -> Frame:
            return self._frame

    return GameEnv()
