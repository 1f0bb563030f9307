"""Softmax, loss and gradient of a chunk of logits in C++, in one visit of its memory."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from seqloom.ops.native.call import FLAG, NUMBER, POINTER, SIZE, THREADS, kernel, pointer, suffix, threads

_TYPES = (POINTER, POINTER, NUMBER, FLAG, POINTER, POINTER, SIZE, SIZE, THREADS)


def softmax_native(
    logits: Float[Tensor, "S V"], targets: Int[Tensor, "S"], z_weight: float, want_gradient: bool
) -> tuple[Float[Tensor, ""], Float[Tensor, ""], Float[Tensor, "S V"] | None]:
    """Nats, z-loss, and the gradient of their sum by the logits where wanted, in the logits' own memory."""
    assert logits.is_contiguous()
    assert bool(((targets >= 0) & (targets < logits.shape[1])).all()), "a target that is no token of the vocabulary"
    nats, penalty = torch.empty(2, len(logits), dtype=torch.float32)
    targets = targets.to(torch.int64).contiguous()
    kernel(f"cross_entropy_{suffix(logits.dtype)}", *_TYPES)(
        pointer(logits), pointer(targets), z_weight, int(want_gradient), pointer(nats), pointer(penalty), *logits.shape,
        threads(),
    )  # fmt: skip
    return nats.sum(), penalty.sum(), logits if want_gradient else None
