"""One operand of a product as its format holds it: x ≈ values · scale, with values that multiply exactly.

MoR (arXiv 2512.22804) chooses at run time: a part of the operand takes the first representation of a ladder whose error
on it is small enough, else it stays BF16. Errors compare x with Q(x) over a part:

    relative       mean of |x - Q(x)| / |x| over x ≠ 0         flush    share of x ≠ 0 with Q(x) = 0
    relative_l2    ‖x - Q(x)‖ / ‖x‖                            range    max|x| / min|x ≠ 0| over that of the format

Decisions are masks on the device, never read by the host, and functions of the operand alone: recomputing repeats them.
NaN or Inf in an operand makes the whole product NaN, as it would in BF16: few bits would hide it.
"""

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Float32, Int, Shaped
from torch import Tensor

from seqloom.core.distributed import Axis
from seqloom.numerics.block_scales import amax_of
from seqloom.numerics.elements import ELEMENTS
from seqloom.numerics.hadamard import DEFAULT_SIGNS, hadamard
from seqloom.numerics.place import Place
from seqloom.numerics.recipes import Choice, Operand
from seqloom.ops.quantize import Rounded, relative_errors, rounded
from seqloom.ops.scaled_mm import codes, real


class Represented(NamedTuple):
    """An operand, quantized or not.

    Attributes:
        values: FP8 numbers or FP4 codes where units for them multiply, and `blocks` are their block scales then.
        events: how often each representation of a choice was taken; None where nothing is chosen.
    """

    values: Shaped[Tensor, "R C"]
    scale: Float32[Tensor, ""]
    events: Int[Tensor, "kinds"] | None = None
    blocks: Shaped[Tensor, "r c"] | None = None


def represented(x: Float[Tensor, "R C"], operand: Operand, axis: Literal[0, 1], place: Place, role: str) -> Represented:
    """An operand as it enters a product.

    Args:
        x: BF16.
        axis: the dimension that the product sums over.
        role: the product and the operand, such as "forward.x".
    """
    if operand.scheme is None and operand.choice is None:
        return Represented(x, torch.ones((), device=x.device))
    name = role.rpartition(".")[2]
    ranks = (place.ranks_of(name, 0), place.ranks_of(name, 1))
    if operand.choice is not None:
        found = _chosen(x, operand.choice, axis, ranks)
    else:
        assert operand.scheme is not None
        signs = DEFAULT_SIGNS * ((operand.scheme.along or 16) // 16) if operand.hadamard else None
        if signs is not None and any(ranks):
            x, signs = hadamard(x, axis, signs), None  # the largest magnitude is to be that of the transformed
        random, amax = place.key(role) if operand.stochastic else None, _amax(x, ranks)
        if operand.delayed is not None:
            amax = place.delayed_amax(name, operand.delayed, amax_of(x) if amax is None else amax)
        if real(operand, x.device, place.hardware):
            values, scale, blocks = codes(
                x, operand.scheme, axis, amax=amax, random=random, bits=operand.bits, signs=signs
            )
            found = Represented(values, scale, blocks=blocks)
        else:
            found = Represented(
                *rounded(x, operand.scheme, axis, amax=amax, random=random, bits=operand.bits, signs=signs)
            )
    if name == "w":
        return found  # a step that would spoil weights is not taken
    total = x.sum()
    place.watch(role, total.isfinite())
    return found._replace(scale=found.scale + total.float() * 0)


def _amax(x: Float[Tensor, "R C"], ranks: tuple[Axis | None, Axis | None]) -> Float32[Tensor, ""] | None:
    """The largest magnitude over the ranks that share an operand; None where one has it all."""
    axis = ranks[0] or ranks[1]
    if axis is None:
        return None
    return axis.most_(amax_of(x))


def _chosen(x: Tensor, choice: Choice, axis: Literal[0, 1], ranks: tuple[Axis | None, Axis | None]) -> Represented:
    part = (choice.across, choice.along) if axis == 1 else (choice.along, choice.across)
    amax = _amax(x, ranks)
    candidates = [rounded(x, scheme, axis, amax=amax) for scheme in choice.ladder]
    whole = [found for found, side in zip(ranks, part, strict=True) if side is None and found]  # a part lies on all
    errors = [
        _error(choice.metric, x, candidate, scheme.element, part, whole[0] if whole else Axis())
        for candidate, scheme in zip(candidates, choice.ladder, strict=True)
    ]
    if choice.three_way:
        taken = [errors[0] <= errors[1], _range(x, "e5m2", part, Axis()) <= 1]
    else:
        taken = [error <= threshold for error, threshold in zip(errors, choice.thresholds, strict=True)]
    left, masks = torch.ones_like(taken[0]), []
    for mask in taken:
        masks.append(mask & left)
        left = left & ~mask
    events = torch.stack([mask.sum() for mask in (*masks, left)])
    if part == (None, None):  # one scale serves it still
        values, scale = x, torch.ones((), device=x.device)
        for mask, candidate in zip(masks, candidates, strict=True):
            values, scale = (
                torch.where(mask[0, 0], candidate.values, values),
                torch.where(mask[0, 0], candidate.scale, scale),
            )
        return Represented(values, scale, events)
    values = x.float()
    for mask, candidate in zip(masks, candidates, strict=True):
        values = torch.where(_spread(mask, part, x), candidate.values.float() * candidate.scale, values)
    return Represented(values, torch.ones((), device=x.device), events)


Part = tuple[int | None, int | None]
"""Rows and columns of what is decided about together; None takes all."""


def _error(
    metric: str, x: Tensor, candidate: Rounded, element: str, part: Part, ranks: Axis
) -> Float32[Tensor, "parts_down parts_across"]:
    """The error of a representation on every part."""
    if metric == "range":
        return _range(x, element, part, ranks)
    if metric == "relative":
        total, count = relative_errors(x, candidate, *part)
        total, count = total.reshape(_parts(part, x)), count.reshape(_parts(part, x)).float()
    else:
        wide = x.float()
        if metric == "flush":
            total, count = (candidate.values == 0) & (x != 0), x != 0
        else:
            total, count = (wide - candidate.values.float() * candidate.scale).square(), wide.square()
        total, count = _tiles(total.float(), part).sum((1, 3)), _tiles(count.float(), part).sum((1, 3))
    total, count = ranks.sum_(total), ranks.sum_(count)
    error = total / count.clamp(min=torch.finfo(torch.float32).tiny)
    return error.sqrt() if metric == "relative_l2" else error


def _range(x: Tensor, element: str, part: Part, ranks: Axis) -> Float32[Tensor, "parts_down parts_across"]:
    """Largest over smallest magnitude of every part, as a share of the normal range of an element; 0 without any."""
    magnitude, format = x.float().abs(), ELEMENTS[element]
    largest = ranks.most_(_tiles(magnitude, part).amax((1, 3)))
    inverse = torch.where(magnitude > 0, 1 / magnitude, 0)
    smallest = ranks.most_(_tiles(inverse, part).amax((1, 3)))
    return largest * smallest / (format.largest / 2.0 ** (1 - format.bias))


def _tiles(x: Float[Tensor, "R C"], part: Part) -> Float[Tensor, "r a c b"]:
    """Parts, the incomplete ones filled up with zeros."""
    rows, columns = (side or size for side, size in zip(part, x.shape, strict=True))
    x = F.pad(x, (0, -x.shape[1] % columns, 0, -x.shape[0] % rows))
    return x.unflatten(0, (-1, rows)).unflatten(2, (-1, columns))


def _parts(part: Part, x: Tensor) -> tuple[int, ...]:
    return tuple(-(-size // (side or size)) for side, size in zip(part, x.shape, strict=True))


def _spread(mask: Bool[Tensor, "r c"], part: Part, x: Tensor) -> Bool[Tensor, "R C"]:
    """A decision for every part as one for every element."""
    for dim, side in enumerate(part):
        mask = mask.repeat_interleave(side or x.shape[dim], dim).narrow(dim, 0, x.shape[dim])
    return mask
