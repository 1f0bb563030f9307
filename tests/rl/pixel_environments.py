"""Environments of gymnasium for tests: one that works, one that fails in the middle, some whose spaces do not fit.

Other processes find them by `gymnasium:tests.rl.pixel_environments:NAME`, which imports this file.
"""

from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Discrete


class Blinking(gymnasium.Env):  # type: ignore[type-arg]
    """Pays 1 for action 1 where the image is bright; lasts 7 steps. Fails or changes its size where asked."""

    def __init__(self, fail_at: int = -1, fail_episode: int = 0, shrink_at: int = -1) -> None:
        self.observation_space, self.action_space = Box(0, 255, (24, 24, 3), np.uint8), Discrete(3)
        self.fail_at, self.fail_episode, self.shrink_at, self.episode = fail_at, fail_episode, shrink_at, -1

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.time, self.episode = 0, self.episode + 1
        return self.look(), {}

    def look(self) -> Any:
        self.bright = bool(self.np_random.integers(2))
        return np.full((24 if self.time != self.shrink_at else 23, 24, 3), 255 * self.bright, np.uint8)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.time += 1
        if self.time == self.fail_at and self.episode >= self.fail_episode:
            raise ZeroDivisionError("the ball left the universe")
        reward = float(action == 1 and self.bright)
        return self.look(), reward, self.time == 7, False, {}


class Numbers(Blinking):
    def __init__(self) -> None:
        super().__init__()
        self.observation_space = Box(0, 1, (4,), np.float32)


class Steering(Blinking):
    def __init__(self) -> None:
        super().__init__()
        self.action_space = Box(-1, 1, (2,), np.float32)


for name, entry, settings in (
    ("Blinking-v0", Blinking, {}),
    ("Failing-v0", Blinking, {"fail_at": 5}),
    ("FailingLate-v0", Blinking, {"fail_at": 5, "fail_episode": 3}),
    ("Shrinking-v0", Blinking, {"shrink_at": 2}),
    ("Numbers-v0", Numbers, {}),
    ("Steering-v0", Steering, {}),
):
    gymnasium.register(name, entry_point=entry, kwargs=settings)
