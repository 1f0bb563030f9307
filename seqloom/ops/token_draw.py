"""Drawing a token: where filters cut a distribution, and a race among what they leave.

    weight  = exp((logit - largest) · sharpness)
    cut     of the k largest (ties with the k-th stay) those that it takes to hold a share of their mass
    race    argmax weight / -log u,   u in (0, 1), the token's number in a sequence that a key names

Tokens are ranked by logit, of equal ones the first id first, so a cut is the last token that stays. The u of token i
is the i-th number of SplitMix64 with the key as its seed: a function of key and token alone.

Paper: Steele, Lea and Flood, "Fast splittable pseudorandom number generators" (OOPSLA 2014).
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float32, Float64, Int64
from torch import Tensor

from seqloom.ops.kernels import chosen

SPLITMIX = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
"""The step of SplitMix64, and what it mixes with."""
_GOLDEN, _MIX1, _MIX2 = map(np.uint64, SPLITMIX)


class Cut(NamedTuple):
    """The last token that stays: those with a larger logit stay, and of those with the same the ids up to `last`."""

    least: float
    last: int


_LAST = 2**31
"""More than any id."""
EVERYTHING = Cut(-math.inf, _LAST)


class Race(NamedTuple):
    """How a token is drawn, but for the key; fields as the arguments of `token_draw`. A sharpness of 0 takes the token
    with the largest logit."""

    sharpness: float
    k: int = 0
    share: float = 1.0
    floor: float = 0.0


def token_mass(logits: Float32[Tensor, "V"], largest: float, sharpness: float) -> float:
    """The sum of all weights."""
    if _native(logits):
        from seqloom.ops.native.token_draw import mass_native

        return mass_native(logits, largest, sharpness)
    return logits.sub(largest).mul_(sharpness).exp_().sum().item()


def token_cut(logits: Float32[Tensor, "V"], largest: float, sharpness: float, k: int, share: float) -> Cut:
    """Where top-k and then top-p cut.

    Args:
        k: 0 keeps all, as V and more do.
        share: 1 keeps all.
    """
    assert math.isfinite(largest), largest
    k = k if k < len(logits) else 0
    if k == 0 and share == 1:
        return EVERYTHING
    if _native(logits):
        from seqloom.ops.native.token_draw import cut_native

        return cut_native(logits, largest, sharpness, k, share)
    return cut_reference(logits, largest, sharpness, k, share)


def token_draw(
    logits: Float32[Tensor, "V"], largest: float, sharpness: float, k: int, share: float, floor: float, key: int
) -> int:
    """The winner of a race; the same for the same arguments, and mostly for similar logits.

    Args:
        k, share: as for the cut.
        floor: tokens that weigh less than this, relative to the heaviest, do not take part.
    """
    assert math.isfinite(largest), largest
    k = k if k < len(logits) else 0
    cut, race = cut_reference, race_reference
    if _native(logits):
        from seqloom.ops.native.token_draw import cut_native, race_native

        cut, race = cut_native, race_native
    kept = cut(logits, largest, sharpness, k, share) if k or share < 1 else EVERYTHING
    return race(logits, largest, sharpness, raised(kept, largest, sharpness, floor), key)


def raised(cut: Cut, largest: float, sharpness: float, floor: float) -> Cut:
    """A cut that also drops what weighs less than the floor."""
    least = largest + math.log(floor) / sharpness if floor > 0 else -math.inf
    return cut if least <= cut.least else Cut(least, _LAST)


def cut_reference(logits: Float32[Tensor, "V"], largest: float, sharpness: float, k: int, share: float) -> Cut:
    """By sorting all."""
    array = logits.numpy()
    order = np.argsort(-array, kind="stable")
    if k:
        order = order[: np.count_nonzero(array >= array[order[k - 1]])]
    if share < 1:
        weight = np.exp((array[order].astype(np.float64) - largest) * sharpness)
        before = weight.cumsum() - weight
        order = order[: np.count_nonzero(before < share * weight.sum())]
    return Cut(float(array[order[-1]]), int(order[-1]))


def race_reference(logits: Float32[Tensor, "V"], largest: float, sharpness: float, cut: Cut, key: int) -> int:
    """Among an array of those that stay."""
    ids = survivors(logits, cut)
    weight = np.exp((logits.numpy()[ids].astype(np.float64) - largest) * sharpness)
    return int(ids[(weight / -np.log(uniforms(key, ids))).argmax()])


def survivors(logits: Float32[Tensor, "V"], cut: Cut) -> Int64[np.ndarray, "K"]:
    """The ids that stay."""
    if cut == EVERYTHING:
        return np.arange(len(logits))
    array = logits.numpy()
    ids = np.flatnonzero(array >= cut.least)
    return ids[(array[ids] > cut.least) | (ids <= cut.last)]


def uniforms(key: int, ids: Int64[np.ndarray, "K"]) -> Float64[np.ndarray, "K"]:
    """The number of each id, between 0 and 1, both excluded."""
    z = ids.astype(np.uint64)
    z *= _GOLDEN
    z += np.uint64((key + int(_GOLDEN)) % 2**64)
    z ^= z >> np.uint64(30)
    z *= _MIX1
    z ^= z >> np.uint64(27)
    z *= _MIX2
    z ^= z >> np.uint64(31)
    return ((z >> np.uint64(12)) + 0.5) * 2.0**-52


def _native(logits: Tensor) -> bool:
    assert logits.is_contiguous()
    assert logits.dtype == torch.float32
    return chosen("token_draw", logits.device, logits.dtype, logits) == "native"
