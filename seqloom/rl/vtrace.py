"""V-trace: values and advantages for a policy π from what another one, μ, did.

    ρ_t = π(a_t|x_t) / μ(a_t|x_t)
    δ_t = min(ρ̄, ρ_t) (r_t + γ_t V(x_{t+1}) - V(x_t))
    v_t = V(x_t) + δ_t + γ_t min(c̄, ρ_t) (v_{t+1} - V(x_{t+1}))          backwards, from v_T = V(x_T)
    A_t = min(ρ̄, ρ_t) (r_t + γ_t v_{t+1} - V(x_t))

Where both policies are the same these are n-step returns. γ_t is 0 where an episode ends.
Paper: IMPALA (Espeholt et al. 2018), section 4.1; attention-augmented agent, section 3.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor


class Targets(NamedTuple):
    """What to move values to, and how much better each action was than expected; neither has a gradient."""

    values: Float[Tensor, "T B"]
    advantages: Float[Tensor, "T B"]


@torch.no_grad()
def vtrace(
    log_ratios: Float[Tensor, "T B"],
    rewards: Float[Tensor, "T B"],
    discounts: Float[Tensor, "T B"],
    values: Float[Tensor, "T+1 B"],
    *,
    rho_bar: float = 1.0,
    c_bar: float = 1.0,
) -> Targets:
    """
    Args:
        log_ratios: log ρ_t.
        rewards: for the action at t.
        discounts: γ_t, 0 where the episode ended with this reward.
        values: V(x_0) to V(x_T) of the learning policy.
    """
    ratios = log_ratios.exp()
    rhos, cs = ratios.clamp(max=rho_bar), ratios.clamp(max=c_bar)
    deltas = rhos * (rewards + discounts * values[1:] - values[:-1])
    beyond = torch.zeros_like(values[0])  # v_{t+1} - V(x_{t+1})
    found = []
    for delta, discount, c in zip(deltas.flip(0), discounts.flip(0), cs.flip(0), strict=True):
        beyond = delta + discount * c * beyond
        found.append(beyond)
    targets = values[:-1] + torch.stack(found[::-1])
    following = torch.cat([targets[1:], values[-1:]])
    return Targets(targets, rhos * (rewards + discounts * following - values[:-1]))
