"""Random numbers that are a function of (key, position) alone: the counter-based generator Philox4x32-10.

Each of ten rounds multiplies two of four 32-bit words into 64-bit products and mixes their halves crosswise,

    (c0, c1, c2, c3) <- (hi(M1 c2) ^ c1 ^ k0, lo(M1 c2), hi(M0 c0) ^ c3 ^ k1, lo(M0 c0)),   k <- k + W

So stochastic rounding does not depend on call order, recomputation or rank layout, and any kernel can make the same
numbers. Element (r, c) of a matrix takes its number from group b = r ⌈columns / 16⌉ + ⌊c / 16⌋ of 16 elements.

Paper: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011).
"""

import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

_M0, _M1 = 0xD2511F53, 0xCD9E8D57
_W0, _W1 = 0x9E3779B9, 0xBB67AE85
_WORD = 0xFFFFFFFF
GROUP = 16
"""Elements of a row that share one counter."""


def random_words(key: int, counters: Int64[Tensor, "N 4"]) -> Int64[Tensor, "N 4"]:
    """Four 32-bit words for every counter of four 32-bit words.

    Args:
        key: 64 bits, of which the low word is the generator's first key word.
    """
    k0, k1 = key & _WORD, key >> 32 & _WORD
    c0, c1, c2, c3 = counters.unbind(1)
    for _ in range(10):
        high0, low0 = _product(_M0, c0)
        high1, low1 = _product(_M1, c2)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = k0 + _W0 & _WORD, k1 + _W1 & _WORD
    return torch.stack((c0, c1, c2, c3), 1)


def random_bytes(
    key: int, rows: int, columns: int, device: torch.device | str = "cpu"
) -> UInt8[Tensor, "{rows} {columns}"]:
    """A byte per element: byte c mod 4, the least significant first, of word ⌊(c mod 16) / 4⌋ of its group."""
    words = random_words(key, _counters(rows, columns, device))
    spread = words[:, :, None] >> torch.tensor((0, 8, 16, 24), device=device) & 0xFF
    return spread.reshape(rows, -1)[:, :columns].to(torch.uint8)


def random_bits24(
    key: int, rows: int, columns: int, device: torch.device | str = "cpu"
) -> Int64[Tensor, "{rows} {columns}"]:
    """24 bits per element: the top ones of word c mod 4 of the group's counter with 1 + ⌊(c mod 16) / 4⌋ in its third
    word, so that they are independent of `random_bytes` under the same key."""
    counters = _counters(rows, columns, device).repeat_interleave(4, 0)
    counters[:, 2] = torch.arange(len(counters), device=device) % 4 + 1
    return (random_words(key, counters) >> 8).reshape(rows, -1)[:, :columns]


def _counters(rows: int, columns: int, device: torch.device | str) -> Tensor:
    """The counter of every group: its number in the first two words."""
    group = torch.arange(rows * -(-columns // GROUP), device=device)
    zero = torch.zeros_like(group)
    return torch.stack((group & _WORD, group >> 32, zero, zero), 1)


def _product(constant: int, word: Tensor) -> tuple[Tensor, Tensor]:
    """High and low word of a 32 x 32 bit product: a signed 64-bit one wraps around to the same bits."""
    product = word * constant
    return product >> 32 & _WORD, product & _WORD
