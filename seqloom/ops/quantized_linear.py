"""The linear product and its two gradient products with operands of few bits.

    y = x W^T        dx = dy W        dW = dy^T x

Each operand is quantized from BF16 for the direction in which it is used: x along the inputs for y and along the tokens
for dW, dy along the outputs for dx and along the tokens for dW, W once per optimizer step for all micro-batches. Values
times block scales are exact where they are multiplied, sums are FP32, the scales of both tensors come after the sum,
and the result is rounded once: what tensor cores compute, up to the order of sums. dW keeps FP32 masters in FP32.
Paper: "Pretraining LLMs with NVFP4", section 4; the FP8 and MoR recipes are the same three products in other formats.
"""

from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from seqloom.numerics.place import Place
from seqloom.numerics.recipes import Operand, Products
from seqloom.ops.linear import bf16_units, linear, product
from seqloom.ops.represented import Represented, represented
from seqloom.ops.scaled_mm import scaled_mm


def quantized_linear(
    x: Float[Tensor, "*B I"], weight: Float[Tensor, "O I"], products: Products, place: Place
) -> Float[Tensor, "*B O"]:
    """x W^T in BF16, multiplied as `products` says; after a late switch to BF16, as that says."""
    x, switched = x.to(torch.bfloat16), place.clock.switched
    if switched == "both" or x.numel() == 0:
        return linear(x, weight)
    if switched == "forward":
        products = products.with_plain_forward()
    rows = x.reshape(-1, x.shape[-1]) if x.dim() != 2 else x
    return _QuantizedLinear.apply(rows, weight, products, place.in_use()).view(*x.shape[:-1], len(weight))


class _QuantizedLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, products: Products, place: Place) -> Tensor:
        left = represented(x, products.forward[0], 1, place, "forward.x")
        right = _of_weight(weight, products.forward[1], 1, place, "forward.w")
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, weight)
        ctx.products, ctx.place = products, place
        ctx.events = {"forward.x": left.events, "forward.w": right.events}
        return _multiplied(left, right, torch.bfloat16, fast=True)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        x, weight = ctx.saved_tensors
        place, for_dx, for_dw = ctx.place, ctx.products.input_gradient, ctx.products.weight_gradient
        events, dx, dw, gradient = ctx.events, None, None, None
        if ctx.needs_input_grad[0]:
            gradient = represented(dy, for_dx[0], 1, place, "input_gradient.dy")
            right = _of_weight(weight, for_dx[1], 0, place, "input_gradient.w")
            events = events | {"input_gradient.dy": gradient.events, "input_gradient.w": right.events}
            dx = _multiplied(gradient, _turned(right), torch.bfloat16)
        if x is not None:
            if gradient is None or for_dw[0] != for_dx[0] or not for_dw[0].same_both_ways:
                gradient = represented(dy, for_dw[0], 0, place, "weight_gradient.dy")
            inputs = represented(x, for_dw[1], 0, place, "weight_gradient.x")
            events = events | {"weight_gradient.dy": gradient.events, "weight_gradient.x": inputs.events}
            dw = _multiplied(_turned(gradient), _turned(inputs), weight.dtype)
        for role, count in events.items():  # here and not in the forward pass, which may be run again
            if count is not None:
                place.count(role, count)
        return dx, dw, None, None


def _turned(a: Represented) -> Represented:
    return a._replace(values=a.values.mT, blocks=None if a.blocks is None else a.blocks.mT)


def _of_weight(weight: Tensor, operand: Operand, axis: Literal[0, 1], place: Place, role: str) -> Represented:
    """A weight as it enters a product, made once for as long as the weight is the same."""
    key = (operand, None if operand.same_both_ways else axis)
    return place.once(weight, key, lambda: represented(weight.to(torch.bfloat16), operand, axis, place, role))


def _multiplied(a: Represented, b: Represented, dtype: torch.dtype, fast: bool = False) -> Float[Tensor, "M N"]:
    """a b^T, summed in FP32, times both scales, rounded once.

    Args:
        fast: the units of a GPU may sum FP8 in fewer bits, as the published recipes do in the forward pass.
    """
    if a.blocks is not None and b.blocks is not None:
        return scaled_mm(a.values, a.scale, a.blocks, b.values, b.scale, b.blocks, dtype, fast)
    return accumulated(a.values, b.values.mT).mul_(a.scale * b.scale).to(dtype)


def accumulated(a: Float[Tensor, "M K"], b: Float[Tensor, "K N"]) -> Float[Tensor, "M N"]:
    """a b in FP32, never rounded to BF16 on the way."""
    if a.dtype == b.dtype == torch.bfloat16:
        if a.is_cuda:
            return torch.mm(a, b, out_dtype=torch.float32)
        if not bf16_units():
            return product(a, b, torch.float32)
    return product(a.float(), b.float(), torch.float32)
