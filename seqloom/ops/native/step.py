"""Whole layers for a few tokens of generation in C++: x + mixer(norm(x)) in one call, with the bits of the single ops.

`gain` and `eps` are those of the norm in front. All tensors are contiguous; every matrix is read as it is stored.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from seqloom.ops.native.call import FLAG, NUMBER, POINTER, SIZE, THREADS, kernel, suffix, threads
from seqloom.ops.native.causal_conv import MOST_TAPS
from seqloom.ops.native.matrix import Weight, matrices

LAYER = (POINTER, POINTER, SIZE, SIZE, POINTER, NUMBER, POINTER)
"""What the C functions begin with; `layer` gives it."""
_MLP = (*LAYER, SIZE, THREADS)
_MAMBA = (*LAYER, *[SIZE] * 7, *[POINTER] * 2, FLAG, *[POINTER] * 8, THREADS)
_ATTENTION = (*LAYER, *[SIZE] * 5, *[POINTER] * 2, SIZE, POINTER, NUMBER, THREADS)
_TYPES = {"mlp_step": _MLP, "mamba_step": _MAMBA, "attention_step": _ATTENTION}


class MambaWeights(NamedTuple):
    """What a Mamba-2 mixer consists of; the gated norm has the eps of the norm in front."""

    in_proj: Weight
    taps: Float[Tensor, "C 1 W"]
    taps_bias: Float[Tensor, "C"]
    dt_bias: Float[Tensor, "H"]
    A_log: Float[Tensor, "H"]
    D: Float[Tensor, "H"]
    gated_gain: Float[Tensor, "I"]
    out_proj: Weight


class AttentionWeights(NamedTuple):
    q: Weight
    k: Weight
    v: Weight
    o: Weight


def mlp_step(
    x: Float[Tensor, "B T D"],
    gain: Float[Tensor, "D"],
    eps: float,
    up: Weight,
    down: Weight,
) -> Float[Tensor, "B T D"]:
    y, gain = torch.empty_like(x), _fp32(gain)
    _form("mlp_step", x.dtype)(*layer(x, y, gain, eps, up, down), up.shape[0], threads())
    return y


def mamba_step(
    x: Float[Tensor, "B T D"],
    gain: Float[Tensor, "D"],
    eps: float,
    weights: MambaWeights,
    groups: int,
    window: Float[Tensor, "B V C"],
    state: Float[Tensor, "B H P N"],
    next_state: Float[Tensor, "B H P N"],
) -> tuple[Float[Tensor, "B T D"], Float[Tensor, "B V C"]]:
    """
    Args:
        next_state: where the state after the last token is put; may be `state` itself.
    Returns:
        the residual stream after the layer, and the next window.
    """
    assert weights.taps.shape[2] <= MOST_TAPS
    y, next_window = torch.empty_like(x), torch.empty_like(window)
    gain, gated_gain = _fp32(gain), _fp32(weights.gated_gain)
    dt_bias, skip = _fp32(weights.dt_bias), _fp32(weights.D)
    rates = -torch.exp(_fp32(weights.A_log))
    batch, tokens, _ = x.shape
    _, heads, head_width, state_width = state.shape
    _form("mamba_step", x.dtype)(
        *layer(x, y, gain, eps, weights.in_proj, weights.out_proj), batch, tokens, heads, head_width, groups,
        state_width, weights.taps.shape[2], weights.taps.data_ptr(), weights.taps_bias.data_ptr(),
        weights.taps.dtype == torch.bfloat16, dt_bias.data_ptr(), rates.data_ptr(), skip.data_ptr(),
        gated_gain.data_ptr(), window.data_ptr(), next_window.data_ptr(), state.data_ptr(), next_state.data_ptr(),
        threads(),
    )  # fmt: skip
    return y, next_window


def attention_step(
    x: Float[Tensor, "B T D"],
    gain: Float[Tensor, "D"],
    eps: float,
    weights: AttentionWeights,
    keys: Float[Tensor, "B G S K"],
    values: Float[Tensor, "B G S K"],
    lengths: Int[Tensor, "B"],
    scale: float,
) -> Float[Tensor, "B T D"]:
    """
    Args:
        keys, values: room for those of earlier tokens and of these, which are written here.
        lengths: tokens each row had before.
    """
    y, gain = torch.empty_like(x), _fp32(gain)
    batch, tokens, _ = x.shape
    _, groups, room, head_width = keys.shape
    _form("attention_step", x.dtype)(
        *layer(x, y, gain, eps, *weights), batch, tokens, weights.q.shape[0] // head_width, groups, head_width,
        keys.data_ptr(), values.data_ptr(), room, lengths.data_ptr(), scale, threads(),
    )  # fmt: skip
    return y


@lru_cache
def _form(name: str, dtype: torch.dtype) -> Callable[..., None]:
    return kernel(f"{name}_{suffix(dtype)}", *_TYPES[name])


def layer(x: Tensor, y: Tensor, gain: Tensor, eps: float, *weights: Weight) -> tuple[Any, ...]:
    """What every fused layer is called with: its tokens, the norm in front, and its matrices in their order."""
    rows, width = x.shape[0] * x.shape[1], x.shape[2]
    return x.data_ptr(), y.data_ptr(), rows, width, gain.data_ptr(), eps, matrices(*weights)


def _fp32(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float32 else x.float()
