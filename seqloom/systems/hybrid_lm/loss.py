"""The pieces of the objective: cross-entropy without logits, and the targets of the look-ahead depths."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from seqloom.data.rows import NO_TARGET, Rows
from seqloom.numerics.precision import dtype_of
from seqloom.ops.cross_entropy import linear_cross_entropy, linear_cross_entropy_z
from seqloom.systems.hybrid_lm.model import HybridLM


def cross_entropy(model: HybridLM, hidden: Float[Tensor, "B T D"], targets: Int[Tensor, "B T"]) -> Float[Tensor, ""]:
    """Nats summed over all targets, without ever holding the logits of the whole batch."""
    hidden = hidden.to(dtype_of(model.lm_head.format))
    return linear_cross_entropy(hidden.flatten(0, 1), model.lm_head.weight, targets.flatten())


def main_loss(
    model: HybridLM, hidden: Float[Tensor, "B T D"], targets: Int[Tensor, "B T"]
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """What training minimises for the next token (nats, and z-loss where the model's stability asks for it), and the
    nats alone, without gradient."""
    hidden = hidden.to(dtype_of(model.lm_head.format))
    z_weight = model.config.stability.z_loss
    return linear_cross_entropy_z(hidden.flatten(0, 1), model.lm_head.weight, targets.flatten(), z_weight)


def targets_ahead(rows: Rows, depth: int) -> Int[Tensor, "B T"]:
    """Targets of the prediction block: token t+depth+1 at position t, where it lies in the same document."""
    result = torch.full_like(rows.targets, NO_TARGET)
    same = rows.documents[:, depth:] == rows.documents[:, :-depth]
    result[:, :-depth] = torch.where(same, rows.targets[:, depth:], NO_TARGET)
    return result
