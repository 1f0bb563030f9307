"""Guesses of a prediction block that feeds itself, in one native call for what is else a call for every part of each.

It is for rows of an engine, on the way that `nn.stack_step` finds for the block's layers, and for layers that remember
in pages alone: then to forget a guess is to count it no longer.
"""

from typing import TYPE_CHECKING, Any

from jaxtyping import Float, Int64
from torch import Tensor, nn

from seqloom.nn.linear import Linear
from seqloom.nn.mtp import MtpBlock
from seqloom.nn.norm import RMSNorm
from seqloom.nn.packed import PackedLinear
from seqloom.nn.paged_kv import PagedRows
from seqloom.nn.stack_step import stack_call
from seqloom.nn.step import as_made, readable
from seqloom.ops.token_draw import Race

if TYPE_CHECKING:
    from seqloom.ops.native.guess_chain import GuessChain
    from seqloom.ops.native.stack_step import StackWeights


class Guesser:
    """
    Args:
        embeddings: of tokens.
        head: of some tokens, a row for each.
        tokens: those, rising.
    """

    def __init__(
        self, block: MtpBlock, embeddings: nn.Embedding, head: Linear | PackedLinear, tokens: Int64[Tensor, "K"]
    ) -> None:
        self._block, self._embeddings, self._head, self._tokens = block, embeddings, head, tokens
        self._calls: dict[tuple[int, int], tuple[list[Any], StackWeights, GuessChain] | None] = {}

    def look_again(self) -> None:
        """Take the model for what it is now; what is changed in it counts from then on."""
        self._calls.clear()

    def __call__(
        self,
        hidden: Float[Tensor, "B T D"],
        next_tokens: list[list[int]],
        ahead: Float[Tensor, "B D"],
        wanted: list[int],
        races: list[Race],
        keys: list[int],
        states: list[Any],
    ) -> list[list[int]] | None:
        """Follow true states, and then guess; None where the modules have to do it.

        Args:
            hidden: states that the block has yet to follow, of each row as many as it has `next_tokens`.
            ahead: the block's output at the newest true position; rewritten where there is something to follow.
            wanted: guesses of each row.
            races, keys: how each row chooses; a key for as many places as the most guesses, row after row.
            states: the block's memory of these rows, of which the caller says afterwards what counts.
        """
        if not hidden.is_contiguous():
            return None
        key = id(states), hidden.shape[1]
        if key not in self._calls:
            self._calls[key] = self._call(hidden, states)
        if (call := self._calls[key]) is None:
            return None
        _, stack, chain = call
        stored, (pages, lengths) = next(state for state in states if isinstance(state, PagedRows))
        assert max(lengths.tolist()) + hidden.shape[1] + max(wanted) - 1 <= pages.shape[1] * stored.page_tokens
        return chain(stack, lengths, hidden, next_tokens, ahead, wanted, races, keys)

    def _call(
        self, hidden: Float[Tensor, "B T D"], states: list[Any]
    ) -> "tuple[list[Any], StackWeights, GuessChain] | None":
        """What the call is told, for as many states of as many rows; it keeps the memory of the rows alive."""
        first: Any = self._block.layers[0]
        last: Any = self._block.layers[-1]
        batch, known, _ = hidden.shape
        stack = stack_call(self._block.layers, last.final_layernorm, hidden.dtype, batch, max(known, 1), states)
        norms, table = (first.enorm, first.hnorm), self._embeddings.weight
        if (
            stack is None
            or not any(isinstance(state, PagedRows) for state in states)
            or not as_made(RMSNorm, *norms)
            or not readable(hidden.dtype, (first.eh_proj, self._head), *(norm.weight for norm in norms), table)
        ):
            return None
        from seqloom.ops.native.guess_chain import GuessChain
        from seqloom.ops.native.step import LayerWeights

        of_token, of_hidden = (LayerWeights(norm.weight, norm.eps) for norm in norms)
        chain = GuessChain(table, of_token, of_hidden, first.eh_proj.weight, self._head.weight, self._tokens)
        return states, stack, chain
