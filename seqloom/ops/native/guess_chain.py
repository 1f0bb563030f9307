"""Guesses of the prediction block one after the other, in one call; see guess_chain.cpp."""

import ctypes
from collections.abc import Callable, Sequence
from ctypes import addressof
from functools import lru_cache
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from seqloom.ops.native.call import FLAG, NUMBER, POINTER, SIZE, kernel, suffix, threads
from seqloom.ops.native.matrix import Weight, matrices
from seqloom.ops.native.stack_step import StackWeights
from seqloom.ops.native.step import LayerWeights
from seqloom.ops.native.token_draw import ToldRace
from seqloom.ops.token_draw import Race


class _Norm(ctypes.Structure):
    _fields_ = (("gain", POINTER), ("eps", NUMBER))


class _Block(ctypes.Structure):
    _fields_ = (
        *((name, POINTER) for name in ("embeddings", "fusing", "head", "tokens")),
        *((name, _Norm) for name in ("token_norm", "hidden_norm")),
        *((name, SIZE) for name in ("width", "vocabulary", "choices")),
        ("narrow", FLAG),
    )


class _Call(ctypes.Structure):
    _fields_ = (
        ("layers", POINTER),
        ("count", SIZE),
        ("last_norm", _Norm),
        *((name, POINTER) for name in ("first", "others", "lengths")),
        *((name, SIZE) for name in ("rows", "known", "places")),
        *((name, POINTER) for name in ("true_tokens", "counts", "wanted", "races", "keys", "guesses")),
        ("threads", FLAG),
    )


class GuessChain:
    """What is the same in all calls.

    Args:
        embeddings: of tokens, FP32 or BF16.
        fusing: from an embedding and a hidden state, each after its norm, to what the layers begin with.
        head: a row for each of some tokens, which rise.
    """

    def __init__(
        self,
        embeddings: Float[Tensor, "V D"],
        token_norm: LayerWeights,
        hidden_norm: LayerWeights,
        fusing: Weight,
        head: Weight,
        tokens: Int64[Tensor, "K"],
    ) -> None:
        vocabulary, width = embeddings.shape
        assert fusing.shape == (width, 2 * width)
        assert head.shape == (len(tokens), width)
        told = matrices(fusing), matrices(head)
        self._read = embeddings, token_norm, hidden_norm, fusing, head, tokens, told
        self._block = _Block(
            embeddings.data_ptr(), *map(addressof, told), tokens.data_ptr(), token_norm.told[:2], hidden_norm.told[:2],
            width, vocabulary, len(tokens), embeddings.dtype == torch.bfloat16,
        )  # fmt: skip

    def __call__(
        self,
        stack: StackWeights,
        lengths: Int64[Tensor, "B"],
        hidden: Float[Tensor, "B T D"],
        next_tokens: list[list[int]],
        ahead: Float[Tensor, "B D"],
        wanted: list[int],
        races: Sequence[Race],
        keys: list[int],
    ) -> list[list[int]]:
        """Follow true states, and then guess.

        Args:
            stack: the block's layers for these rows, and the norm behind them.
            lengths: that the layers see; they grow by what is followed, and by guesses.
            hidden: true states that the block has yet to follow, of each row as many as it has `next_tokens`.
            ahead: the block's output at the newest true position; rewritten where there is something to follow.
            wanted: guesses of each row.
            races, keys: how each row chooses; a key for as many places as the most guesses, row after row.
        """
        (rows, known, width), places = hidden.shape, max(wanted)
        first, others = (type(stack.rows).from_buffer_copy(stack.rows) for _ in range(2))
        for each, length in ((first, known), (others, 1)):
            each.batch, each.tokens, each.width, each.threads = rows, length, width, threads()
        padded = [each for tokens in next_tokens for each in (*tokens, *[0] * (known - len(tokens)))]
        told: list[ctypes.Array[Any]] = [
            (SIZE * (rows * known))(*padded), (SIZE * rows)(*map(len, next_tokens)), (SIZE * rows)(*wanted),
            (ToldRace * rows)(*(ToldRace(*race) for race in races)), (ctypes.c_uint64 * (rows * places))(*keys),
            (SIZE * (places * rows))(),
        ]  # fmt: skip
        call = _Call(
            addressof(stack.layers), len(stack.layers), (stack.gain, stack.eps), addressof(first), addressof(others),
            lengths.data_ptr(), rows, known, places, *map(addressof, told), threads(),
        )  # fmt: skip
        _form(hidden.dtype)(ctypes.byref(self._block), ctypes.byref(call), hidden.data_ptr(), ahead.data_ptr())
        guesses = told[-1][:]
        return [guesses[row : count * rows : rows] for row, count in enumerate(wanted)]


@lru_cache
def _form(dtype: torch.dtype) -> Callable[..., None]:
    return kernel(f"guess_chain_{suffix(dtype)}", *[POINTER] * 4)
