"""Where rollouts come from: groups of environments in this process, or in actor processes (see `actors.py`).

    launch(agent, n)   begin rollout n with the weights as they are now
    take()             the rollout that was launched last, when it is done

The two are told apart by nothing but their speed: groups have the same size everywhere, and a rollout depends only on
its number, the weights at its launch, and the state of the environments before it.
"""

import contextlib
from collections.abc import Iterator
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from seqloom.core.config import config
from seqloom.core.errors import CheckpointError
from seqloom.rl.config import EnvironmentConfig
from seqloom.rl.runner import Collected, Group
from seqloom.rl.unroll import Agent, joined, unroll_from


@config
class RolloutPlan:
    """What decides the rollouts, beside the agent."""

    environment: EnvironmentConfig
    environments: int
    group: int
    """Environments that share a forward pass."""
    steps: int
    seed: int

    @property
    def groups(self) -> int:
        return self.environments // self.group

    def open_group(self, index: int) -> Group:
        return Group(self.environment, self.seed, index * self.group, self.group)


@runtime_checkable
class Rollouts(Protocol):
    """A source of rollouts."""

    def launch(self, agent: Agent, number: int) -> None: ...

    def take(self) -> Collected:
        """
        Raises:
            DataError: an environment failed.
        """
        ...

    def state(self) -> dict[str, Tensor]:
        """Of all groups, and of the rollout that was launched and not taken; waits for it."""
        ...

    def load_state(self, state: dict[str, Tensor]) -> None: ...

    def close(self) -> None: ...


class LocalRollouts:
    """In this process, on the device of the model; collected when launched."""

    def __init__(self, plan: RolloutPlan) -> None:
        self._plan = plan
        self._groups = [plan.open_group(index) for index in range(plan.groups)]
        self._ready: Collected | None = None

    def launch(self, agent: Agent, number: int) -> None:
        with one_thread():
            self._ready = together([group.collect(agent, number, self._plan.steps) for group in self._groups])

    def take(self) -> Collected:
        assert self._ready is not None
        ready, self._ready = self._ready, None
        return ready

    def state(self) -> dict[str, Tensor]:
        return {**packed_ready(self._ready), **packed_groups([group.get_state() for group in self._groups])}

    def load_state(self, state: dict[str, Tensor]) -> None:
        self._ready = unpacked_ready(state)
        for group, part in zip(self._groups, unpacked_groups(state, len(self._groups)), strict=True):
            group.set_state(part)

    def close(self) -> None:
        for group in self._groups:
            group.close()


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Compute as an actor process does, which has one thread: the number of threads can change the last bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def together(parts: list[Collected]) -> Collected:
    """What several groups collected, in their order."""
    returns = [each for part in parts for each in part.returns]
    lengths = [each for part in parts for each in part.lengths]
    return Collected(joined([part.unroll for part in parts]), returns, lengths)


def packed(collected: Collected) -> dict[str, Tensor]:
    """A rollout as tensors by name."""
    returns, lengths = torch.tensor(collected.returns, dtype=torch.float64), torch.tensor(collected.lengths)
    return {**collected.unroll.tensors(), "returns": returns, "lengths": lengths.to(torch.int64)}


def unpacked(tensors: dict[str, Tensor]) -> Collected:
    """
    Raises:
        CheckpointError: it is not a rollout.
    """
    try:
        returns, lengths = tensors["returns"].tolist(), tensors["lengths"].tolist()
        return Collected(unroll_from(tensors), returns, [int(length) for length in lengths])
    except KeyError as error:
        raise CheckpointError(f"not a stored rollout: {error} is missing") from error


def packed_ready(ready: Collected | None) -> dict[str, Tensor]:
    return {} if ready is None else {f"ready.{name}": tensor for name, tensor in packed(ready).items()}


def unpacked_ready(state: dict[str, Tensor]) -> Collected | None:
    found = under(state, "ready.")
    return unpacked(found) if found else None


def packed_groups(states: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {f"group.{index}.{name}": part for index, state in enumerate(states) for name, part in state.items()}


def unpacked_groups(state: dict[str, Tensor], count: int) -> list[dict[str, Tensor]]:
    return [under(state, f"group.{index}.") for index in range(count)]


def under(tensors: dict[str, Tensor], start: str) -> dict[str, Tensor]:
    """Those whose name begins so, by the rest of their name."""
    return {name.removeprefix(start): part for name, part in tensors.items() if name.startswith(start)}
