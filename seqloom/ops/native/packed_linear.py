"""Products with packed weights on the CPU: codes are unpacked in registers, by the forms of rows_by_matrix.h."""

from jaxtyping import Float
from torch import Tensor

from seqloom.ops.native.matvec import matvec
from seqloom.ops.packed_linear import PackedWeight


def packed_linear_native(x: Float[Tensor, "*B I"], weight: PackedWeight) -> Float[Tensor, "*B O"]:
    """x W^T in the dtype of `x`, without gradients."""
    assert weight.codes.is_contiguous()
    return matvec(x, weight)
