"""Speculative decoding: guess several tokens cheaply, then check all of them in one pass of the model.

A guess is kept exactly when it is the token that would have been drawn in its place, so an answer does not depend on
how many tokens were guessed, nor on how well. Guesses are drawn with the noise of the place they guess for
(`sampling`), which makes guess and draw agree as often as their distributions do.

The prediction block keeps keys and values of its own. The entry of a position can be made only when the token after it
is known, and must be made from the backbone's true hidden state; entries made from the block's own output while
guessing are dropped again. While nobody guesses the block waits, and catches up in one call when it is asked.
Paper: Nemotron 3 white paper and Super, MTP sections.
"""

from collections.abc import Sequence
from itertools import groupby
from typing import Protocol
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float
from torch import Tensor

from seqloom.nn.cache import HybridCache
from seqloom.serve.contract import LanguageModel
from seqloom.serve.request import Request
from seqloom.serve.short_head import ShortHead

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


class Followed:
    """What the prediction block knows of a request.

    Attributes:
        ahead: its output at the newest position that it has followed; None before the first.
        hidden: true states that it has yet to follow, each a row of some.
        tokens: after them.
    """

    def __init__(self) -> None:
        self.ahead: Float[Tensor, "D"] | None = None
        self.hidden: list[tuple[Float[Tensor, "B 1 D"], int]] = []
        self.tokens: list[int] = []

    def caught_up(self, ahead: Float[Tensor, "D"]) -> None:
        self.ahead, self.hidden, self.tokens = ahead, [], []


class MtpDrafter:
    """Guesses with the model's own prediction block, for all rows at once."""

    needs_hidden = True

    def __init__(self, model: LanguageModel, cache: HybridCache) -> None:
        self._model, self._cache, self._head = model, cache, ShortHead(model)

    def follow(
        self, first: int, requests: Sequence[Request], hidden: Float[Tensor, "B T D"], next_tokens: list[list[int]]
    ) -> None:
        for request, tokens in zip(requests, next_tokens, strict=True):
            request.followed = request.followed or Followed()
            self._head.count(tokens)
        if hidden.shape[1] == 1:  # nobody has guessed, and may not for long
            self._put_off(first, requests, hidden if hidden.is_cpu else hidden.clone(), next_tokens)
            return
        self._catch_up(first, requests)
        counts = [max(1, len(tokens)) for tokens in next_tokens]
        longest = max(counts)
        padded = torch.tensor([tokens + [0] * (longest - len(tokens)) for tokens in next_tokens], device=hidden.device)
        uneven = min(counts) < longest
        states = self._cache.draft_states(first, len(requests), longest, guessed=uneven)
        ahead = self._model.draft(hidden[:, :longest].contiguous(), padded, states)
        if uneven:
            self._cache.keep_draft(first, counts)
        for row, (request, count) in enumerate(zip(requests, counts, strict=True)):
            request.followed.caught_up(ahead[row, count - 1])

    def propose(self, requests: Sequence[Request], counts: list[int]) -> list[list[int]]:
        guesses: list[list[int]] = [[] for _ in requests]
        counts = [0 if request.followed is None else count for request, count in zip(requests, counts, strict=True)]
        if not any(counts):
            return guesses
        self._catch_up(0, requests)
        known = next(request.followed.ahead for request in requests if request.followed is not None)
        rows = [torch.zeros_like(known) if request.followed is None else request.followed.ahead for request in requests]
        ahead = torch.stack(rows)[:, None]
        before = self._cache.save_draft(0, len(requests))
        for place in range(max(counts)):
            if place:
                newest = torch.tensor([guess[-1:] or [0] for guess in guesses], device=ahead.device)
                ahead = self._model.draft(ahead, newest, self._cache.draft_states(0, len(requests), 1))
            logits = self._head(ahead[:, 0])
            for row, request in enumerate(requests):
                if place < counts[row]:
                    guesses[row].append(request.guess(logits[row], place))
        self._cache.load_draft(before)
        return guesses

    def _put_off(
        self, first: int, requests: Sequence[Request], hidden: Float[Tensor, "B 1 D"], next_tokens: list[list[int]]
    ) -> None:
        """Keep the states for later, or until a border of pages, where the row may be remembered."""
        for row, (request, tokens) in enumerate(zip(requests, next_tokens, strict=True)):
            request.followed.hidden.append((hidden, row))
            request.followed.tokens += tokens
            if self._cache.lengths[first + row] % self._cache.page_tokens == 0:
                self._catch_up(first + row, [request])

    def _catch_up(self, first: int, requests: Sequence[Request]) -> None:
        """Have the block follow rows from `first` on to their newest positions."""
        for behind, group in groupby(requests, lambda request: len(request.followed.tokens) if request.followed else 0):
            run = list(group)
            if behind:
                followed = [torch.cat([state[row] for state, row in request.followed.hidden]) for request in run]
                hidden = torch.stack(followed)
                tokens = torch.tensor([request.followed.tokens for request in run], device=hidden.device)
                ahead = self._model.draft(hidden, tokens, self._cache.draft_states(first, len(run), behind))
                for row, request in enumerate(run):
                    request.followed.caught_up(ahead[row, -1])
            first += len(run)


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
