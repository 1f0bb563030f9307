"""The draw of a token in C++: passes over the vocabulary that compute only where something can come of it."""

import ctypes

from jaxtyping import Float32
from torch import Tensor

from seqloom.ops.native.call import DOUBLE, NUMBER, POINTER, SIZE, kernel, pointer
from seqloom.ops.token_draw import Cut


class ToldRace(ctypes.Structure):
    """A `Race` as token_draw.h has it."""

    _fields_ = (("sharpness", DOUBLE), ("k", SIZE), ("share", DOUBLE), ("floor", DOUBLE))


def mass_native(logits: Float32[Tensor, "V"], largest: float, sharpness: float) -> float:
    """As the portable form, to rounding."""
    total = ctypes.c_double()
    run = kernel("token_mass", POINTER, SIZE, NUMBER, NUMBER, POINTER)
    run(pointer(logits), len(logits), largest, sharpness, ctypes.byref(total))
    return total.value


def cut_native(logits: Float32[Tensor, "V"], largest: float, sharpness: float, k: int, share: float) -> Cut:
    """As `cut_reference`, but for tokens that share the mass at the cut to rounding."""
    least, last = ctypes.c_float(), ctypes.c_int64()
    run = kernel("token_cut", POINTER, SIZE, NUMBER, NUMBER, SIZE, DOUBLE, POINTER, POINTER)
    run(pointer(logits), len(logits), largest, sharpness, k, share, ctypes.byref(least), ctypes.byref(last))
    return Cut(least.value, last.value)


def race_native(logits: Float32[Tensor, "V"], largest: float, sharpness: float, cut: Cut, key: int) -> int:
    """As `race_reference`."""
    winner = ctypes.c_int64(-1)
    run = kernel("token_race", POINTER, SIZE, NUMBER, DOUBLE, NUMBER, SIZE, ctypes.c_uint64, POINTER)
    run(pointer(logits), len(logits), largest, sharpness, cut.least, cut.last, key, ctypes.byref(winner))
    assert winner.value >= 0
    return winner.value
