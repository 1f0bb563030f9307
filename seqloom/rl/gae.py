"""Generalised advantage estimation.

    δ_t = r_t + γ_t V(x_{t+1}) - V(x_t)        A_t = δ_t + γ_t λ A_{t+1}        returns A_t + V(x_t)

λ = 1 gives n-step returns, λ = 0 one step. γ_t is 0 where an episode ends. Paper: Schulman et al. 2016.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from seqloom.rl.vtrace import Targets


@torch.no_grad()
def advantages(
    rewards: Float[Tensor, "T B"], discounts: Float[Tensor, "T B"], values: Float[Tensor, "T+1 B"], decay: float
) -> Targets:
    """
    Args:
        rewards: for the action at t.
        discounts: γ_t, 0 where the episode ended with this reward.
        values: V(x_0) to V(x_T) of the policy that acted.
        decay: λ.
    """
    deltas = rewards + discounts * values[1:] - values[:-1]
    ahead = torch.zeros_like(values[0])
    found = []
    for delta, discount in zip(deltas.flip(0), discounts.flip(0), strict=True):
        ahead = delta + discount * decay * ahead
        found.append(ahead)
    gains = torch.stack(found[::-1])
    return Targets(gains + values[:-1], gains)
