"""An expert layer for a few tokens of generation in C++, with the bits of the modules inside `invariant()`; and what
its router does, which the modules call too. See moe_step.cpp."""

from collections.abc import Callable, Sequence
from functools import lru_cache

import torch
from jaxtyping import Float, Int
from torch import Tensor

from seqloom.ops.native.call import FLAG, NUMBER, POINTER, SIZE, THREADS, kernel, suffix, threads
from seqloom.ops.native.matrix import Weight, stack
from seqloom.ops.native.step import LAYER, LayerWeights, held, tokens

Rule = tuple[int, int, int, int, bool, float]
"""How a router chooses: experts, top-k, groups, best groups, whether weights sum to 1, and what scales them then."""

_ROUTER = (POINTER, SIZE, SIZE, SIZE, SIZE, FLAG, NUMBER, THREADS)
_STEP = (*LAYER, POINTER, POINTER, FLAG, SIZE, SIZE, SIZE, *_ROUTER)


class MoeWeights(LayerWeights):
    """
    Args:
        single: the router's matrix, the shared expert's two, and, where the routed experts run in a latent width, the
            two around them.
        bias: of the router.
        up, down: stacks [E, F, I] and [E, I, F] of the routed experts.
    """

    def __init__(
        self,
        gain: Float[Tensor, "D"],
        eps: float,
        single: Sequence[Weight],
        bias: Float[Tensor, "E"],
        up: Weight,
        down: Weight,
    ) -> None:
        super().__init__(gain, eps, *single)
        self._read += held(up), held(down)
        _, expert_width, inner_width = up.shape
        sizes = len(single) > 3, inner_width, expert_width, single[1].shape[0]
        self.of_experts = stack(up), stack(down), *sizes, self.read(bias, bias.float())


def route(
    logits: Float[Tensor, "S E"], bias: Float[Tensor, "E"], rule: Rule
) -> tuple[Int[Tensor, "S J"], Float[Tensor, "S J"], Float[Tensor, "S E"]]:
    """The chosen experts of every token, their weights, and the score of every expert, from FP32 logits."""
    logits, bias = logits.contiguous(), bias.float().contiguous()
    scores = torch.empty(logits.shape, dtype=torch.float32)
    chosen = torch.empty(len(logits), rule[1], dtype=torch.int64)
    weights = torch.empty(chosen.shape, dtype=torch.float32)
    kernel("route", POINTER, POINTER, POINTER, POINTER, SIZE, *_ROUTER)(
        logits.data_ptr(), scores.data_ptr(), chosen.data_ptr(), weights.data_ptr(), len(logits), bias.data_ptr(),
        *rule, threads(),
    )  # fmt: skip
    return chosen, weights, scores


def moe_step(x: Float[Tensor, "B T D"], weights: MoeWeights, rule: Rule) -> Float[Tensor, "B T D"]:
    y = torch.empty_like(x)
    _form(x.dtype)(*tokens(x, y), *weights.told, *weights.of_experts, *rule, threads())
    return y


@lru_cache
def _form(dtype: torch.dtype) -> Callable[..., None]:
    return kernel(f"moe_step_{suffix(dtype)}", *_STEP)
