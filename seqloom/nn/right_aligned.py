"""Rows that remember different numbers of tokens, laid out so that those of the present call stand in the same columns.

Row r has p_r guesses of its call before that turned out right, and T tokens of this one:

    columns   0 ... behind - p_r - 1     behind - p_r ... behind - 1     behind ... behind + T - 1
    hold      nothing                    guesses to catch up with        tokens of this call

The step size of nothing is softplus(-inf) = 0, which leaves a state as it is to the last bit. So no shape depends on
what is remembered, nothing has to be asked of it, and a GPU can replay the same operations (`serve.captured`).
"""

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from seqloom.nn.narrow import Narrow


def shifted(x: Float[Tensor, "B S C"], columns: int, empty: Int64[Tensor, "B"]) -> Float[Tensor, "B _ C"]:
    """The first columns of each row, moved to the right by its number of empty ones, which repeat the first."""
    place = torch.arange(columns, device=x.device) - empty[:, None]
    return x.gather(1, place.clamp(min=0)[..., None].expand(-1, -1, x.shape[2]))


def where_held(held: Bool[Tensor, "B"], there: Narrow, elsewhere: Narrow) -> Narrow:
    """States of the rows whose column holds something from here, of the others from there."""
    held = held[:, None, None, None]
    codes = torch.where(held, there.codes, elsewhere.codes)
    if there.scales is None or elsewhere.scales is None:
        return Narrow(codes, None)
    return Narrow(codes, torch.where(held, there.scales, elsewhere.scales))
