"""Choosing the tokens of many places at once, where the logits are: `token_draw`, in operations of a fixed shape.

No shape depends on what comes out and nothing is asked of the device, so a recorded step can end in it. Logarithms and
exponentials are those of torch on this device; where they differ from those of `token_draw` in the last bit, a race as
close as that may have another winner.
"""

from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float32, Float64, Int64
from torch import Tensor

from seqloom.ops.token_draw import SPLITMIX

_GOLDEN, _MIX1, _MIX2 = SPLITMIX

Kind = Literal["greedy", "race", "filtered"]
"""What the rows of a call ask for at most: the likeliest token, a race of all, or one of those that filters leave."""


class Races(NamedTuple):
    """How the rows choose; arguments as in `token_draw`.

    Attributes:
        sharpness: 0 takes the likeliest token.
        keys: of every place, as the signed number of the same bits.
    """

    sharpness: Float64[Tensor, "B"]
    top_k: Int64[Tensor, "B"]
    share: Float64[Tensor, "B"]
    floor: Float64[Tensor, "B"]
    keys: Int64[Tensor, "B T"]


def token_choice(logits: Float32[Tensor, "B T V"], races: Races, kind: Kind) -> Int64[Tensor, "B T"]:
    """The token of each place; -1 where the logits are not finite."""
    largest, token = logits.max(-1)
    if kind != "greedy":
        token = torch.where(races.sharpness[:, None] > 0, _winners(logits, largest, races, kind), token)
    return torch.where(largest.isfinite(), token, -1)


def _winners(
    logits: Float32[Tensor, "B T V"], largest: Float32[Tensor, "B T"], races: Races, kind: Kind
) -> Int64[Tensor, "B T"]:
    ids = torch.arange(logits.shape[-1], device=logits.device)
    sharpness = races.sharpness[:, None, None]
    if kind == "race":
        weight = ((logits.double() - largest[..., None]) * sharpness).exp()
        return (weight / -_uniforms(races.keys, ids).log()).argmax(-1)
    logits, ids = logits.sort(dim=-1, descending=True, stable=True)
    weight = ((logits.double() - largest[..., None]) * sharpness).exp()
    weight = weight * _survive(logits, weight, largest, races)
    best = (weight / -_uniforms(races.keys, ids).log()).argmax(-1, keepdim=True)
    return ids.gather(-1, best)[..., 0]


def _survive(
    logits: Float32[Tensor, "B T V"], weight: Float64[Tensor, "B T V"], largest: Float32[Tensor, "B T"], races: Races
) -> Bool[Tensor, "B T V"]:
    """Which of the sorted tokens top-k, then top-p, then min-p leave."""
    tokens = logits.shape[-1]
    k = torch.where(races.top_k > 0, races.top_k, tokens).clamp(max=tokens)
    least = logits.gather(-1, (k - 1)[:, None, None].expand(*logits.shape[:2], 1))
    weight = torch.where(logits >= least, weight, 0.0)  # ties with the k-th stay
    share = races.share[:, None, None]
    before = weight.cumsum(-1) - weight
    held = (before < share * weight.sum(-1, keepdim=True)) | (share >= 1)
    likely = logits.double() >= largest[..., None] + (races.floor.log() / races.sharpness)[:, None, None]
    return (logits >= least) & held & likely


def _uniforms(keys: Int64[Tensor, "B T"], ids: Int64[Tensor, "*BT V"]) -> Float64[Tensor, "B T V"]:
    """`token_draw.uniforms`: products and sums of 64 bits wrap alike with and without a sign."""
    z = ids * signed(_GOLDEN) + (keys[..., None] + signed(_GOLDEN))
    z = (z ^ _right(z, 30)) * signed(_MIX1)
    z = (z ^ _right(z, 27)) * signed(_MIX2)
    z = z ^ _right(z, 31)
    return (_right(z, 12).double() + 0.5) * 2.0**-52


def _right(z: Int64[Tensor, "*B"], bits: int) -> Int64[Tensor, "*B"]:
    """Shifted without the sign."""
    return (z >> bits) & (2 ** (64 - bits) - 1)


def signed(word: int) -> int:
    """The signed number of the same 64 bits."""
    return word - 2**64 if word >= 2**63 else word
