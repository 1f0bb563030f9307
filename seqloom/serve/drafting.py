"""Speculative decoding: guess several tokens cheaply, then check all of them in one pass of the model.

A guess is kept exactly when it is the token that would have been drawn in its place, so an answer does not depend on
how many tokens were guessed, nor on how well. Guesses are drawn with the noise of the place they guess for
(`sampling`), which makes guess and draw agree as often as their distributions do.

The prediction block keeps keys and values of its own. The entry of a position can be made only when the token after it
is known, and must be made from the backbone's true hidden state; entries made from the block's own output while
guessing are dropped again.
Paper: Nemotron 3 white paper and Super, MTP sections.
"""

from collections.abc import Sequence
from typing import Protocol
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float
from torch import Tensor

from seqloom.nn.cache import HybridCache
from seqloom.serve.contract import LanguageModel
from seqloom.serve.request import Request

MOST_GUESSES = 16
"""Of one row in one step; layers with a recurrent state keep room for so many tokens."""

_MATCHES = (4, 3, 2)
"""Tokens that have to be the same, the most convincing number first."""


class Drafter(Protocol):
    """A source of guesses for the rows that want some, which are the first of all."""

    needs_hidden: bool
    """Whether `follow` makes use of hidden states."""

    def follow(
        self, first: int, requests: Sequence[Request], hidden: Float[Tensor, "B T D"], next_tokens: list[list[int]]
    ) -> None:
        """Take in the true hidden states of the next positions of rows from `first` on, and the tokens that came after;
        a row with fewer of them than T has nothing to say about the last positions."""
        ...

    def propose(self, requests: Sequence[Request], counts: list[int]) -> list[list[int]]:
        """Guess the tokens after the newest of rows 0, 1, ...; at most so many, none where nothing is known."""
        ...


class MtpDrafter:
    """Guesses with the model's own prediction block, for all rows at once."""

    needs_hidden = True

    def __init__(self, model: LanguageModel, cache: HybridCache) -> None:
        self._model, self._cache = model, cache

    def follow(
        self, first: int, requests: Sequence[Request], hidden: Float[Tensor, "B T D"], next_tokens: list[list[int]]
    ) -> None:
        counts = [max(1, len(tokens)) for tokens in next_tokens]
        longest = max(counts)
        padded = torch.tensor([tokens + [0] * (longest - len(tokens)) for tokens in next_tokens], device=hidden.device)
        uneven = min(counts) < longest
        states = self._cache.draft_states(first, len(requests), longest, guessed=uneven)
        ahead = self._model.draft(hidden[:, :longest].contiguous(), padded, states)
        if uneven:
            self._cache.keep_draft(first, counts)
        for row, (request, count) in enumerate(zip(requests, counts, strict=True)):
            request.ahead = ahead[row, count - 1]

    def propose(self, requests: Sequence[Request], counts: list[int]) -> list[list[int]]:
        guesses: list[list[int]] = [[] for _ in requests]
        counts = [0 if request.ahead is None else count for request, count in zip(requests, counts, strict=True)]
        if not any(counts):
            return guesses
        known = next(request.ahead for request in requests if request.ahead is not None)
        rows = [torch.zeros_like(known) if request.ahead is None else request.ahead for request in requests]
        ahead = torch.stack(rows)[:, None]
        before = self._cache.save_draft(0, len(requests))
        for place in range(max(counts)):
            if place:
                newest = torch.tensor([guess[-1:] or [0] for guess in guesses], device=ahead.device)
                ahead = self._model.draft(ahead, newest, self._cache.draft_states(0, len(requests), 1))
            logits = self._model.head(ahead)[:, 0]
            for row, request in enumerate(requests):
                if place < counts[row]:
                    guesses[row].append(request.guess(logits[row], place))
        self._cache.load_draft(before)
        return guesses


class NgramDrafter:
    """Guesses that a text goes on as it did when it last came by here (prompt lookup)."""

    needs_hidden = False

    def __init__(self) -> None:
        self._texts: WeakKeyDictionary[Request, _Places] = WeakKeyDictionary()

    def follow(
        self, first: int, requests: Sequence[Request], hidden: Float[Tensor, "B T D"], next_tokens: list[list[int]]
    ) -> None:
        """Nothing: the text is all there is to know."""

    def propose(self, requests: Sequence[Request], counts: list[int]) -> list[list[int]]:
        guesses = []
        for request, count in zip(requests, counts, strict=True):
            place = self._texts.setdefault(request, _Places()).after(request.ids)
            guesses.append(request.ids[place : place + count] if place else [])
        return guesses


class _Places:
    """Where each run of tokens of one text was last seen."""

    def __init__(self) -> None:
        self._ends: dict[tuple[int, ...], int] = {}
        self._read = 0

    def after(self, ids: list[int]) -> int:
        """The latest place that followed on the same tokens as the text ends in, as many of them as possible; or 0."""
        for end in range(self._read, len(ids)):
            for size in _MATCHES:
                if size <= end:
                    self._ends[tuple(ids[end - size : end])] = end
        self._read = len(ids)
        ends = (self._ends.get(tuple(ids[-size:]), 0) for size in _MATCHES if size < len(ids))
        return next((end for end in ends if end), 0)
