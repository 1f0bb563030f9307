"""Byte layouts of FP4 codes and block scales.

Two codes share a byte, the even element in its low half, as ModelOpt and compressed-tensors store them. Block scales
are stored row-major; FP4 tensor cores want them in tiles of 128 rows by 4 columns, each tile as 32 x 4 x 4 bytes:
row = 128 R + 32 i + j and column = 4 C + k lie at ((R · columns/4 + C) · 32 + j) · 16 + 4 i + k.
"""

import torch.nn.functional as F
from jaxtyping import UInt8
from torch import Tensor

from seqloom.core.errors import DataError


def pack(codes: UInt8[Tensor, "*S C"]) -> UInt8[Tensor, "*S half"]:
    """Pairs of 4-bit codes as bytes.

    Raises:
        DataError: an odd number of columns.
    """
    if codes.shape[-1] % 2:
        raise DataError(f"4-bit codes are stored in pairs along the last axis; its size is {codes.shape[-1]}")
    return codes[..., ::2] & 0xF | codes[..., 1::2] << 4


def unpack(packed: UInt8[Tensor, "*S half"]) -> UInt8[Tensor, "*S C"]:
    """The codes of packed bytes."""
    pairs = packed.new_empty((*packed.shape, 2))
    pairs[..., 0] = packed & 0xF
    pairs[..., 1] = packed >> 4
    return pairs.flatten(-2)


def swizzle(scales: UInt8[Tensor, "R C"]) -> UInt8[Tensor, "padded"]:
    """Block scales in the order of the hardware, padded with zeros to whole tiles."""
    rows, columns = scales.shape
    padded = F.pad(scales, (0, -columns % 4, 0, -rows % 128))
    tiles = padded.reshape(padded.shape[0] // 128, 4, 32, padded.shape[1] // 4, 4)
    return tiles.permute(0, 3, 2, 1, 4).flatten()


def unswizzle(scales: UInt8[Tensor, "padded"], rows: int, columns: int) -> UInt8[Tensor, "{rows} {columns}"]:
    """The row-major block scales of a swizzled buffer."""
    down, right = -(-rows // 128), -(-columns // 4)
    tiles = scales.reshape(down, right, 32, 4, 4).permute(0, 3, 2, 1, 4)
    return tiles.reshape(down * 128, right * 4)[:rows, :columns].contiguous()
