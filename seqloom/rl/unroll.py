"""What an agent sees and what is kept of its acting: T steps of B environments, and one frame more.

At index t lie the frame of a step, the reward and the action that led to it, and whether an episode begins with it.
So `rewards[1:]`, `actions[1:]` and `begins[1:]` are what the agent's choices at 0..T-1 brought, and the last frame is
there to say what is still to come. The next unroll begins with that frame.
"""

from collections.abc import Iterator
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor, nn


class Seen(NamedTuple):
    """What an agent is given at T steps of B environments.

    Attributes:
        rewards: of the step before, as the environment gave it; not defined where an episode begins.
        actions: taken before; likewise.
    """

    frames: UInt8[Tensor, "T B Y X 3"]
    rewards: Float[Tensor, "T B"]
    actions: Int[Tensor, "T B"]
    begins: Bool[Tensor, "T B"]


class Unroll(NamedTuple):
    """What acting left to learn from.

    Attributes:
        seen: T+1 steps.
        log_probs: of the actions taken, under the policy that took them.
        state: of the agent before the first step, by name, B first.
    """

    seen: Seen
    log_probs: Float[Tensor, "T B"]
    state: dict[str, Tensor]

    def columns(self, chosen: slice | Int[Tensor, "b"]) -> "Unroll":
        """The unrolls of some of the environments."""
        seen = Seen(*(tensor[:, chosen] for tensor in self.seen))
        state = {name: tensor[chosen] for name, tensor in self.state.items()}
        return Unroll(seen, self.log_probs[:, chosen], state)

    def to(self, device: torch.device) -> "Unroll":
        seen = Seen(*(tensor.to(device, non_blocking=True) for tensor in self.seen))
        state = {name: tensor.to(device, non_blocking=True) for name, tensor in self.state.items()}
        return Unroll(seen, self.log_probs.to(device), state)

    def tensors(self) -> dict[str, Tensor]:
        """By name, to be stored."""
        state = {f"state.{name}": tensor for name, tensor in self.state.items()}
        return {**self.seen._asdict(), "log_probs": self.log_probs, **state}


def unroll_from(tensors: dict[str, Tensor]) -> Unroll:
    """The opposite of `Unroll.tensors`; KeyError where one is missing."""
    state = {name.removeprefix("state."): part for name, part in tensors.items() if name.startswith("state.")}
    seen = Seen(*(tensors[name] for name in Seen._fields))
    return Unroll(seen, tensors["log_probs"], state)


def joined(unrolls: list[Unroll]) -> Unroll:
    """Unrolls of equal length side by side."""
    seen = Seen(*(torch.cat(parts, dim=1) for parts in zip(*(unroll.seen for unroll in unrolls), strict=True)))
    state = {name: torch.cat([unroll.state[name] for unroll in unrolls]) for name in unrolls[0].state}
    return Unroll(seen, torch.cat([unroll.log_probs for unroll in unrolls], dim=1), state)


@runtime_checkable
class Agent(Protocol):
    """What rollouts ask of a model."""

    def initial_state(self, batch: int) -> dict[str, Tensor]:
        """The state before an episode, by name, B first."""
        ...

    def act(self, seen: Seen, state: dict[str, Tensor]) -> tuple[Float[Tensor, "B A"], dict[str, Tensor]]:
        """One step (T = 1) without gradients: logits, and the state after it."""
        ...

    def parameters(self) -> Iterator[nn.Parameter]: ...

    def state_dict(self) -> dict[str, Tensor]: ...
