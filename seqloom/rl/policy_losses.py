"""Losses of actor-critic learners, as sums over steps; whoever adds several batches divides once by their steps.

    actor-critic   -Σ log π(a) A        PPO   -Σ min(r A, clip(r, 1 - ε, 1 + ε) A), r = π(a) / π_old(a)
    value          ½ Σ (target - V)²    PPO with a value clip: the worse of V and V_old + clip(V - V_old, ±ε)
    entropy        Σ -Σ_a π(a) log π(a)

Papers: IMPALA; PPO (Schulman et al. 2017).
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def chosen_log_probs(logits: Float[Tensor, "T B A"], actions: Int[Tensor, "T B"]) -> Float[Tensor, "T B"]:
    """log π of the actions that were taken."""
    return logits.float().log_softmax(-1).gather(-1, actions[..., None]).squeeze(-1)


def policy_gradient_loss(log_probs: Float[Tensor, "T B"], advantages: Float[Tensor, "T B"]) -> Float[Tensor, ""]:
    return -(log_probs * advantages.detach()).sum()


def clipped_policy_loss(
    log_ratios: Float[Tensor, "T B"], advantages: Float[Tensor, "T B"], clip: float
) -> tuple[Float[Tensor, ""], Bool[Tensor, "T B"]]:
    """The loss, and where the ratio left the clip range."""
    ratios, gains = log_ratios.exp(), advantages.detach()
    inside = ratios.clamp(1 - clip, 1 + clip)
    return -torch.minimum(ratios * gains, inside * gains).sum(), (ratios - 1).abs() > clip


def value_loss(
    values: Float[Tensor, "T B"],
    targets: Float[Tensor, "T B"],
    old: Float[Tensor, "T B"] | None = None,
    clip: float | None = None,
) -> Float[Tensor, ""]:
    """
    Args:
        old: values when the steps were taken; needed with a clip.
        clip: how far from them a value may gain by moving.
    """
    squares = (targets.detach() - values) ** 2
    if clip is not None:
        assert old is not None
        near = old + (values - old).clamp(-clip, clip)
        squares = torch.maximum(squares, (targets.detach() - near) ** 2)
    return 0.5 * squares.sum()


def entropy(logits: Float[Tensor, "T B A"]) -> Float[Tensor, ""]:
    """Summed over steps, in nats."""
    log_p = logits.float().log_softmax(-1)
    return -(log_p.exp() * log_p).sum()
