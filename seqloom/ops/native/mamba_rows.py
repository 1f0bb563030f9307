"""A Mamba-2 mixer over rows of an engine in C++: what mixes tokens, and the whole layer in one call.

What the rows remember is changed in place. Meaning and portable form: `nn/mamba_slots.py`.
"""

import ctypes
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor

from seqloom.ops.native.call import FLAG, POINTER, SIZE, THREADS, kernel, suffix, threads
from seqloom.ops.native.causal_conv import MOST_TAPS
from seqloom.ops.native.step import LAYER, MambaWeights, mixing, tokens

FORMATS = ("fp32", "bf16", "fp16", "fp16_sr", "int8", "int8_sr", "fp8", "fp8_sr")
"""Of stored states, in the order of `StateFormat` in narrow_states.h."""

_ROWS = (SIZE, SIZE, FLAG, THREADS)
_TYPES = {
    "mamba_mix": (POINTER, POINTER, POINTER, SIZE, POINTER, SIZE, POINTER, SIZE, *_ROWS),
    "mamba_rows": (*LAYER, POINTER, POINTER, POINTER, *_ROWS),
}


class Remembered(NamedTuple):
    """All rows of a layer's memory; tensors that stay where they are, contiguous.

    Attributes:
        window: inputs of the convolution, V up to the stored state and then one for each guess.
        guesses: raw step sizes of guesses.
        pending: guesses that were kept, and that the stored state has not met.
        positions: tokens that the stored state has met.
        codes, scales: the states in their format; as in `nn.narrow.Narrow`.
    """

    window: Float[Tensor, "R V+A C"]
    guesses: Float32[Tensor, "R A H"]
    pending: Int64[Tensor, "R"]
    positions: Int64[Tensor, "R"]
    codes: Tensor
    scales: Float32[Tensor, "R H P _"] | None


class Slots(ctypes.Structure):
    """`Slots` in mamba_rows.cpp."""

    _fields_ = (
        *((name, POINTER) for name in ("window", "guesses", "pending", "positions", "codes", "scales")),
        ("key", ctypes.c_uint64),
        *((name, SIZE) for name in ("heads", "head_width", "groups", "state_width", "taps", "ahead")),
        ("format", ctypes.c_int32),
    )


def slots(remembered: Remembered, groups: int, format: str, key: int) -> Slots:
    """What the C functions are told of a layer's memory; it must live as long as it is used."""
    _, heads, head_width, state_width = remembered.codes.shape
    ahead = remembered.guesses.shape[1]
    taps = remembered.window.shape[1] - ahead + 1
    assert taps <= MOST_TAPS
    pointers = (tensor if tensor is None else tensor.data_ptr() for tensor in remembered)
    return Slots(*pointers, key, heads, head_width, groups, state_width, taps, ahead, FORMATS.index(format))


def mamba_mix(
    xbc: Float[Tensor, "B T C"],
    dt: Float[Tensor, "B T H"],
    taps: Float[Tensor, "C W"],
    bias: Float[Tensor, "C"],
    dt_bias: Float[Tensor, "H"],
    a_log: Float[Tensor, "H"],
    skip: Float[Tensor, "H"],
    of: Slots,
    first: int,
    guessed: bool,
) -> Float[Tensor, "B T I"]:
    """Convolution, scan and the skip, for new tokens of rows from `first` on, which may be slices of projections.

    Args:
        guessed: all tokens but the first of each row are guesses.
    """
    assert xbc.dtype == dt.dtype, (xbc.dtype, dt.dtype)
    batch, length, _ = xbc.shape
    y = torch.empty(batch, length, of.heads * of.head_width, dtype=xbc.dtype)
    if y.numel():
        xbc, dt = _even(xbc), _even(dt)
        told, _kept = mixing(taps, bias, dt_bias, a_log, skip)
        _form("mamba_mix", xbc.dtype)(
            ctypes.byref(of), ctypes.byref(told), xbc.data_ptr(), _apart(xbc), dt.data_ptr(), _apart(dt),
            y.data_ptr(), first, batch, length, guessed, threads(),
        )  # fmt: skip
    return y


def mamba_rows(
    x: Float[Tensor, "B T D"], weights: MambaWeights, of: Slots, first: int, guessed: bool
) -> Float[Tensor, "B T D"]:
    """x + mixer(norm(x)) for a few tokens of rows from `first` on; arguments as in `mamba_mix`."""
    y = torch.empty_like(x)
    _form("mamba_rows", x.dtype)(
        *tokens(x, y), *weights.told, ctypes.byref(of), ctypes.byref(weights.mixing), weights.gated_gain, first,
        x.shape[0], guessed, threads(),
    )  # fmt: skip
    return y


def _even(x: Float[Tensor, "B T C"]) -> Float[Tensor, "B T C"]:
    """With the numbers of a token side by side, and all tokens equally far apart."""
    even = x.shape[1] == 1 or x.stride(0) == x.shape[1] * x.stride(1)
    return x if x.stride(2) == 1 and even else x.contiguous()


def _apart(x: Float[Tensor, "B T C"]) -> int:
    """How far two tokens of an even tensor lie apart."""
    return x.stride(1) if x.shape[1] > 1 else x.stride(0)


@lru_cache
def _form(name: str, dtype: torch.dtype) -> Callable[..., None]:
    return kernel(f"{name}_{suffix(dtype)}", *_TYPES[name])
