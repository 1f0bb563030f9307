"""Whole layers for a few tokens of generation in C++: x + mixer(norm(x)) in one call, with the bits of the single ops.

What the functions are told of a layer's weights is made once and good for any number of calls: as long as the weights
stay where they are, and those of which there is a copy as they are. All tensors are contiguous; every matrix is read as
it is stored.
"""

import ctypes
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from seqloom.ops.native.call import FLAG, NUMBER, POINTER, SIZE, THREADS, kernel, suffix, threads
from seqloom.ops.native.causal_conv import MOST_TAPS
from seqloom.ops.native.matrix import Weight, matrices

LAYER = (POINTER, POINTER, SIZE, SIZE, POINTER, NUMBER, POINTER)
"""What the C functions begin with; `tokens` and `LayerWeights.told` give it."""
_MLP = (*LAYER, SIZE, THREADS)
_MAMBA = (*LAYER, *[SIZE] * 7, *[POINTER] * 2, FLAG, *[POINTER] * 8, THREADS)
_ATTENTION = (*LAYER, *[SIZE] * 5, *[POINTER] * 2, SIZE, POINTER, NUMBER, THREADS)
_TYPES = {"mlp_step": _MLP, "mamba_step": _MAMBA, "attention_step": _ATTENTION}


class Mixing(ctypes.Structure):
    """The parameters of what mixes tokens in a Mamba-2 layer; `Mixing` in mamba_rows.cpp."""

    _fields_ = (*((name, POINTER) for name in ("taps", "bias", "dt_bias", "rates", "skip")), ("narrow", ctypes.c_int32))


class LayerWeights:
    """What every layer has: the norm in front, and matrices in an order of its own.

    Attributes:
        told: of them, to the C functions.
        copied: parameters that are read from copies made here.
    """

    def __init__(self, gain: Float[Tensor, "D"], eps: float, *weights: Weight) -> None:
        self.copied: list[Tensor] = []
        self._read: list[Any] = [*map(held, weights)]  # what the C functions are pointed to lives as long as this
        self.told = self.read(gain, gain.float()), eps, matrices(*weights)

    def read(self, parameter: Tensor, numbers: Tensor) -> int:
        """Where numbers lie that stand for a parameter."""
        if numbers.data_ptr() != parameter.data_ptr():
            self.copied.append(parameter)
        self._read.append(held(numbers))
        return numbers.data_ptr()


class MlpWeights(LayerWeights):
    def __init__(self, gain: Float[Tensor, "D"], eps: float, up: Weight, down: Weight) -> None:
        super().__init__(gain, eps, up, down)
        self.hidden_width = up.shape[0]


class MambaWeights(LayerWeights):
    """The gated norm has the eps of the norm in front."""

    def __init__(
        self,
        gain: Float[Tensor, "D"],
        eps: float,
        in_proj: Weight,
        taps: Float[Tensor, "C 1 W"],
        bias: Float[Tensor, "C"],
        dt_bias: Float[Tensor, "H"],
        a_log: Float[Tensor, "H"],
        skip: Float[Tensor, "H"],
        gated_gain: Float[Tensor, "I"],
        out_proj: Weight,
        groups: int,
    ) -> None:
        super().__init__(gain, eps, in_proj, out_proj)
        assert taps.shape[2] <= MOST_TAPS
        parameters = taps, bias, dt_bias, a_log, skip
        self.mixing, read = mixing(*parameters)
        for parameter, numbers in zip(parameters, read, strict=True):
            self.read(parameter, numbers)
        self.gated_gain = self.read(gated_gain, gated_gain.float())
        self.groups, self.taps = groups, taps.shape[2]


class AttentionWeights(LayerWeights):
    """
    Args:
        projections: to queries, keys and values, and of the output.
        scale: of the scores.
    """

    def __init__(
        self, gain: Float[Tensor, "D"], eps: float, projections: Sequence[Weight], heads: int, scale: float
    ) -> None:
        super().__init__(gain, eps, *projections)
        self.heads, self.scale = heads, scale


def held(weight: Weight) -> Weight:
    """The numbers of a weight, which stay although it may be given others."""
    return weight.detach() if isinstance(weight, Tensor) else weight


class _Kept(ctypes.Structure):
    _fields_ = (("now", POINTER), ("before", POINTER), ("bytes", SIZE))


class Kept:
    """The numbers of tensors in memory of the CPU, as they are when this is made; tensors must stay where they are."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self._before = [ctypes.create_string_buffer(ctypes.string_at(each.data_ptr(), each.nbytes)) for each in tensors]
        parts = zip(tensors, self._before, strict=True)
        self._parts = (_Kept * len(tensors))(
            *(_Kept(each.data_ptr(), ctypes.addressof(before), each.nbytes) for each, before in parts)
        )

    def unchanged(self) -> bool:
        """Whether they are the same now."""
        same = ctypes.c_int32()
        kernel("as_kept", POINTER, SIZE, POINTER)(self._parts, len(self._parts), ctypes.byref(same))
        return bool(same.value)


def mixing(
    taps: Tensor, bias: Tensor, dt_bias: Tensor, a_log: Tensor, skip: Tensor
) -> tuple[Mixing, tuple[Tensor, ...]]:
    """What the C functions are told of these parameters, and the tensors that it points into, in their order."""
    taps, bias = taps.contiguous(), bias.to(taps.dtype).contiguous()
    read = taps, bias, dt_bias.float(), -torch.exp(a_log.float()), skip.float()
    return Mixing(*(tensor.data_ptr() for tensor in read), taps.dtype == torch.bfloat16), read


def mlp_step(x: Float[Tensor, "B T D"], weights: MlpWeights) -> Float[Tensor, "B T D"]:
    y = torch.empty_like(x)
    _form("mlp_step", x.dtype)(*tokens(x, y), *weights.told, weights.hidden_width, threads())
    return y


def mamba_step(
    x: Float[Tensor, "B T D"],
    weights: MambaWeights,
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
    y, next_window, m = torch.empty_like(x), torch.empty_like(window), weights.mixing
    _, heads, head_width, state_width = state.shape
    _form("mamba_step", x.dtype)(
        *tokens(x, y), *weights.told, *x.shape[:2], heads, head_width, weights.groups, state_width, weights.taps,
        m.taps, m.bias, m.narrow, m.dt_bias, m.rates, m.skip, weights.gated_gain, window.data_ptr(),
        next_window.data_ptr(), state.data_ptr(), next_state.data_ptr(), threads(),
    )  # fmt: skip
    return y, next_window


def attention_step(
    x: Float[Tensor, "B T D"],
    weights: AttentionWeights,
    keys: Float[Tensor, "B G S K"],
    values: Float[Tensor, "B G S K"],
    lengths: Int[Tensor, "B"],
) -> Float[Tensor, "B T D"]:
    """
    Args:
        keys, values: room for those of earlier tokens and of these, which are written here.
        lengths: tokens each row had before.
    """
    y = torch.empty_like(x)
    _, groups, room, head_width = keys.shape
    _form("attention_step", x.dtype)(
        *tokens(x, y), *weights.told, *x.shape[:2], weights.heads, groups, head_width, keys.data_ptr(),
        values.data_ptr(), room, lengths.data_ptr(), weights.scale, threads(),
    )  # fmt: skip
    return y


@lru_cache
def _form(name: str, dtype: torch.dtype) -> Callable[..., None]:
    return kernel(f"{name}_{suffix(dtype)}", *_TYPES[name])


def tokens(x: Float[Tensor, "B T D"], y: Float[Tensor, "B T D"]) -> tuple[int, int, int, int]:
    """What a C function is told of its tokens and of the room for what becomes of them."""
    batch, length, width = x.shape
    return x.data_ptr(), y.data_ptr(), batch * length, width
