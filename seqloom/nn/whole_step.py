"""The short way of whole steps of an engine's rows: one native call from token ids to the choice of the next ones.

    x = Emb[tokens];   hidden = norm(x after all layers);   logits = hidden W^T;   token = choice(logits)

The bits are those of embedding, `nn.stack_step`, head and `ops.token_draw` one after the other. In a small model what
lies between them takes as long as the layers.
"""

from collections.abc import Callable
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float, Float32
from torch import Tensor, nn

from seqloom.nn.layer import Stack
from seqloom.nn.linear import Linear
from seqloom.nn.packed import PackedLinear
from seqloom.nn.parts import Parts
from seqloom.nn.stack_step import stack_call
from seqloom.nn.step import readable
from seqloom.ops.token_draw import Race


class Chosen(NamedTuple):
    """What became of some steps.

    Attributes:
        hidden: of all steps, T of them where there are several.
        logits: of the last; None where nobody else needs them.
        tokens: of all steps, rows and places; -1 where the logits are not finite, after which a row's are worthless,
            and anything in rows that leave the choice to others.
    """

    hidden: Float[Tensor, "B T D"]
    logits: Float32[Tensor, "B T V"] | None
    tokens: list[int]


class _Ready(NamedTuple):
    """What is around the layers, found fit for the call, as it was then."""

    dtype: torch.dtype
    parts: Parts
    ends: Any


_ready_ends: WeakKeyDictionary[nn.Module, _Ready] = WeakKeyDictionary()
"""By output head."""


Steps = Callable[[list[list[int]], list[Race | None], list[int], int], Chosen]
"""Feeds equally many tokens to rows of an engine, advancing what they remember, and chooses the token after each.

    fed     tokens of every row
    races   how each row chooses; None leaves that to others, who are given logits
    keys    of the races, in the order of the tokens chosen; empty where each takes the likeliest
    times   steps, each fed what the one before chose; several are for rows that are fed one token and have a race
"""


def whole_steps(
    embeddings: nn.Embedding,
    layers: Stack,
    norm: nn.Module,
    head: nn.Module,
    dtype: torch.dtype,
    batch: int,
    tokens: int,
    views: list[Any],
) -> Steps | None:
    """Steps of so many tokens in each of some rows, for any number of times, as long as modules, weights and `views`
    stay what they are now; None where it has to be done one after the other.

    Args:
        dtype: of the residual stream.
        views: of the rows, one for every layer.
    """
    stack = stack_call(layers, norm, dtype, batch, tokens, views)
    if stack is None:
        return None
    ready = _ready_ends.get(head)
    if ready is None or ready.dtype is not dtype or not ready.parts.unchanged(embeddings, head):
        ready = _examine(embeddings, head, dtype)
        if ready is None:
            return None
        _ready_ends[head] = ready
    ends = ready.ends

    def steps(fed: list[list[int]], races: list[Race | None], keys: list[int], times: int) -> Chosen:
        hidden, logits, tokens = stack.whole_steps(ends, dtype, fed, races, keys, times)
        return Chosen(hidden[0] if times == 1 else hidden[:, :, 0].transpose(0, 1), logits, tokens)

    return steps


def _examine(embeddings: nn.Embedding, head: nn.Module, dtype: torch.dtype) -> _Ready | None:
    """Make what is around the layers ready, if it is fit."""
    if not isinstance(head, Linear | PackedLinear) or not readable(dtype, (head,), embeddings.weight):
        return None
    from seqloom.ops.native.stack_step import Ends

    return _Ready(dtype, Parts(embeddings, head, ()), Ends(embeddings.weight, head.weight))
