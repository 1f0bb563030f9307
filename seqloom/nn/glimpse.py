"""Soft, spatial, top-down attention: whoever asks sees only weighted sums of an image's features, not the features.

    K' = [K, S]   V' = [V, S]         keys and values of every position, each with a fixed code S of where it is
    L^n_yx = q^n · K'_yx              split: L = L_what + L_where, the parts that K and S contribute
    A^n = softmax over all positions  (or A^n = L^n / positions, without a softmax)
    a^n = Σ_yx A^n_yx V'_yx           one answer for each query

The queries come from the recurrent state of an agent or a classifier, hence top-down. The code S is made of outer
products of Fourier functions of row and column and is not learned.
Paper: attention-augmented agent, sections 2.3 and 2.5; sequential attention for image classification uses the same.
"""

import math
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

Basis = Literal["cos_sin", "cos", "none"]
Weighting = Literal["softmax", "sum"]


class Glimpse(NamedTuple):
    """What N queries get from an image, and where they looked.

    Attributes:
        answers: weighted sums of [values, basis].
        maps: the weights; those of a softmax add up to 1 over all positions.
        logits_what: what the content of the keys contributes to the logits.
        logits_where: what the spatial basis contributes to them.
    """

    answers: Float[Tensor, "*B N W"]
    maps: Float[Tensor, "*B N Y X"]
    logits_what: Float[Tensor, "*B N Y X"]
    logits_where: Float[Tensor, "*B N Y X"]


def spatial_basis(
    rows: int, columns: int, frequencies: int = 4, kind: Basis = "cos_sin"
) -> Float[Tensor, "{rows} {columns} C"]:
    """A code for every position: all products of a function of the row y and one of the column x, counted from 1.

    cos_sin: cos(π u y / rows) and sin(π u y / rows) for u = 1..frequencies, and the same of columns;
    cos: cos(π u y / rows) for u = 1..2·frequencies; none: no channels.
    """
    along = [_fourier(length, frequencies, kind) for length in (rows, columns)]
    return torch.einsum("ya,xb->yxab", *along).flatten(2)


def _fourier(length: int, frequencies: int, kind: Basis) -> Float[Tensor, "{length} F"]:
    places = torch.arange(1, length + 1, dtype=torch.float64) / length
    count = {"cos_sin": frequencies, "cos": 2 * frequencies, "none": 0}[kind]
    angles = math.pi * places[:, None] * torch.arange(1, count + 1, dtype=torch.float64)
    waves = torch.cat([angles.cos(), angles.sin()], dim=1) if kind == "cos_sin" else angles.cos()
    return waves.float()


class GlimpseAttention(nn.Module):
    """Attention of N queries to images of one size; holds no parameters, only the spatial basis."""

    def __init__(
        self,
        rows: int,
        columns: int,
        *,
        frequencies: int = 4,
        basis: Basis = "cos_sin",
        weighting: Weighting = "softmax",
        scale_logits: bool = False,
    ) -> None:
        """
        Args:
            weighting: "sum" weighs each position by its logit over the number of positions.
            scale_logits: divide logits by the root of the key width (the paper does not).
        """
        super().__init__()
        self.weighting, self.scale_logits = weighting, scale_logits
        self.basis: Tensor
        self.register_buffer("basis", spatial_basis(rows, columns, frequencies, basis), persistent=False)

    def forward(
        self, queries: Float[Tensor, "B N Q"], keys: Float[Tensor, "B Y X K"], values: Float[Tensor, "B Y X V"]
    ) -> Glimpse:
        """
        Args:
            queries: each K + S wide: what to look for in the keys, then where in the spatial basis.
        """
        image, code = keys.shape[1:3], self.basis.flatten(0, 1)
        assert queries.shape[-1] == keys.shape[-1] + code.shape[-1]
        if self.scale_logits:
            queries = queries / queries.shape[-1] ** 0.5
        what, where = queries.split([keys.shape[-1], code.shape[-1]], dim=-1)
        logits_what = what @ keys.flatten(1, 2).mT
        logits_where = where @ code.mT
        logits = logits_what + logits_where
        weights = logits.softmax(-1) if self.weighting == "softmax" else logits / logits.shape[-1]
        answers = torch.cat([weights @ values.flatten(1, 2), weights @ code], dim=-1)
        return Glimpse(answers, *(part.unflatten(-1, image) for part in (weights, logits_what, logits_where)))
