"""A group of environments that step together, with one forward pass for all of them.

The group is the unit of everything that must be the same however the work is spread: the size of the forward pass, the
draws of the actions, the seeds of the episodes. Episode e of environment i is seeded by (seed, i, e), the actions of
rollout n by (seed, n, group); no stream depends on how much another one drew.
"""

import math
import traceback
from collections.abc import Callable
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from seqloom.core.errors import CheckpointError, DataError
from seqloom.core.seeds import derive, generator
from seqloom.rl.config import EnvironmentConfig
from seqloom.rl.environment import Frame, make_environment
from seqloom.rl.unroll import Agent, Seen, Unroll

T = TypeVar("T")


class Collected(NamedTuple):
    """A rollout, and the episodes that ended in it, in a fixed order.

    Attributes:
        returns: sums of unclipped rewards.
        lengths: steps.
    """

    unroll: Unroll
    returns: list[float]
    lengths: list[int]


class Group:
    """Environments number first to first + count - 1 of a run, in the middle of their episodes."""

    def __init__(self, config: EnvironmentConfig, seed: int, first: int, count: int) -> None:
        self._name, self._seed, self._first = config.name, seed, first
        self._environments = [make_environment(config) for _ in range(count)]
        facts = self._environments[0].facts
        self._shape = (facts.rows, facts.columns, 3)
        self._has_state = facts.has_state
        self._frames = np.zeros((count, *self._shape), dtype=np.uint8)
        self._rewards, self._actions = torch.zeros(count), torch.zeros(count, dtype=torch.int64)
        self._begins = torch.ones(count, dtype=torch.bool)
        self._state: dict[str, Tensor] | None = None
        self._episodes, self._lengths = [-1] * count, [0] * count
        self._returns = [0.0] * count

    def collect(self, agent: Agent, number: int, steps: int) -> Collected:
        """Act for some steps.

        Args:
            number: of the rollout, from which the actions are drawn.
        Raises:
            DataError: an environment failed, or gave what cannot be used; with its trace.
        """
        count = len(self._environments)
        device = next(iter(agent.parameters())).device
        state = self._state if self._state is not None else agent.initial_state(count)
        self._state = {name: tensor.to(device) for name, tensor in state.items()}
        for place in range(count):
            if self._episodes[place] < 0:
                self._begin(place)
        draws = torch.rand(steps, count, generator=generator(self._seed, "actions", number, self._first))
        began = dict(self._state)
        seen, log_probs = [self._seen()], []
        returns, lengths = list[float](), list[int]()
        for draw in draws:
            now = Seen(*(tensor[None].to(device) for tensor in seen[-1]))
            logits, self._state = agent.act(now, self._state)
            log_p = logits.float().cpu().log_softmax(-1)
            self._actions = drawn(log_p, draw)
            log_probs.append(log_p.gather(1, self._actions[:, None])[:, 0])
            for place, action in enumerate(self._actions.tolist()):
                if self._step(place, action):
                    returns.append(self._returns[place])
                    lengths.append(self._lengths[place])
                    self._begin(place)
            seen.append(self._seen())
        parts = Seen(*map(torch.stack, zip(*seen, strict=True)))
        return Collected(Unroll(parts, torch.stack(log_probs), began), returns, lengths)

    def get_state(self) -> dict[str, Tensor]:
        """Everything that the next rollout begins with; of environments without a state, only their place in it."""
        if self._state is None:
            return {}
        found = {f"agent.{name}": tensor.clone() for name, tensor in self._state.items()}
        found["rewards"], found["actions"] = self._rewards.clone(), self._actions.clone()
        found["begins"], found["frames"] = self._begins.clone(), torch.from_numpy(self._frames.copy())
        found["episodes"], found["lengths"] = torch.tensor(self._episodes), torch.tensor(self._lengths)
        found["returns"] = torch.tensor(self._returns, dtype=torch.float64)
        if self._has_state:
            for place, environment in enumerate(self._environments):
                found |= {f"environment.{place}.{name}": part for name, part in environment.get_state().items()}
        return found

    def set_state(self, state: dict[str, Tensor]) -> None:
        """Go on from a state; environments without one begin new episodes.

        Raises:
            CheckpointError: it is not a state of this group.
        """
        try:
            self._state = {name.removeprefix("agent."): t for name, t in state.items() if name.startswith("agent.")}
            self._episodes = state["episodes"].tolist()
            self._rewards, self._actions, self._begins = (state[name] for name in ("rewards", "actions", "begins"))
            self._frames = state["frames"].numpy().copy()
            self._lengths, self._returns = state["lengths"].tolist(), state["returns"].tolist()
            for place, environment in enumerate(self._environments):
                start = f"environment.{place}."
                own = {name.removeprefix(start): part for name, part in state.items() if name.startswith(start)}
                if self._has_state:
                    environment.set_state(own)
                else:
                    self._begin(place)
        except (KeyError, IndexError, RuntimeError) as error:
            raise CheckpointError(f"not a state of {len(self._environments)} environments: {error}") from error

    def close(self) -> None:
        for environment in self._environments:
            environment.close()

    def _seen(self) -> Seen:
        """The present of all environments; tensors of its own."""
        frames = torch.from_numpy(self._frames.copy())
        return Seen(frames, self._rewards.clone(), self._actions.clone(), self._begins.clone())

    def _begin(self, place: int) -> None:
        self._episodes[place] += 1
        seed = derive(self._seed, "episode", self._first + place, self._episodes[place]) % 2**31
        frame, _ = self._attempt(place, lambda: self._environments[place].reset(seed=seed))
        self._show(place, frame)
        self._begins[place] = True
        self._lengths[place], self._returns[place] = 0, 0.0

    def _step(self, place: int, action: int) -> bool:
        """Whether the episode is over."""
        found = self._attempt(place, lambda: self._environments[place].step(action))
        frame, reward, terminated, truncated, _ = found
        if not math.isfinite(reward):
            raise DataError(f"{self._where(place)} gave the reward {reward}")
        self._show(place, frame)
        self._rewards[place], self._begins[place] = reward, False
        self._lengths[place] += 1
        self._returns[place] += reward
        return terminated or truncated

    def _show(self, place: int, frame: Frame) -> None:
        if frame.dtype != np.uint8 or frame.shape != self._shape:
            raise DataError(
                f"{self._where(place)} gave a frame of {frame.dtype} {frame.shape}; promised was uint8 {self._shape}"
            )
        self._frames[place] = frame

    def _attempt(self, place: int, work: Callable[[], T]) -> T:
        try:
            return work()
        except Exception as error:
            trace = "".join(traceback.format_exception(error)).rstrip()
            raise DataError(f"{self._where(place)} failed: {type(error).__name__}: {error}\n{trace}") from error

    def _where(self, place: int) -> str:
        return (
            f"environment '{self._name}' (copy {self._first + place}, episode {self._episodes[place]}, "
            f"step {self._lengths[place]})"
        )


def drawn(log_p: Tensor, draws: Tensor) -> Tensor:
    """Actions of given probabilities from numbers between 0 and 1, by the inverse of the cumulative distribution."""
    below = log_p.double().exp().cumsum(-1)[:, :-1] <= draws.double()[:, None]
    return below.sum(-1)
