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
from typing import NamedTuple, Protocol
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float
from torch import Tensor

from seqloom.nn.cache import HybridCache
from seqloom.nn.step import MOST_ROWS, MOST_TOKENS
from seqloom.serve.contract import LanguageModel
from seqloom.serve.request import Request
from seqloom.serve.sampling import race_of
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
        hidden: true states that it has yet to follow, in pieces.
        tokens: after them.
    """

    def __init__(self) -> None:
        self.ahead: Float[Tensor, "D"] | None = None
        self.hidden: list[Float[Tensor, "T D"]] = []
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
        """Keep the states for later, or until a border of pages, where a row may be remembered; many are followed at
        once."""
        if not hidden.is_cpu:  # there it lies where the next step writes
            hidden = hidden.clone()
        for row, (request, tokens) in enumerate(zip(requests, next_tokens, strict=True)):
            if request.rests:
                request.followed = None
                continue
            if request.followed is None:
                request.followed = Followed()
                self._head.look_again()
            followed = request.followed
            self._head.count(tokens)
            followed.hidden.append(hidden[row, : len(tokens)])
            followed.tokens += tokens
            if len(tokens) > 1 + MOST_GUESSES or self._cache.lengths[first + row] % self._cache.page_tokens == 0:
                self._catch_up(first + row, [request])

    def propose(self, requests: Sequence[Request], counts: list[int]) -> list[list[int]]:
        counts = [0 if request.followed is None else count for request, count in zip(requests, counts, strict=True)]
        if not any(counts):
            return [[] for _ in requests]
        return self._in_one_call(requests, counts) or self._one_by_one(requests, counts)

    def _in_one_call(self, requests: Sequence[Request], counts: list[int]) -> list[list[int]] | None:
        """The guesses, where the block remembers in pages alone and choices are plain; one call for some rows."""
        if not self._cache.drafts_revive or not all(map(_chooses_plainly, requests)):
            return None
        if (guesser := self._head.guesser()) is None:
            return None
        if max(map(_behind, requests)) > MOST_TOKENS:
            self._catch_up(0, requests)
        together = MOST_ROWS // max(1, *map(_behind, requests))
        guesses: list[list[int]] = []
        for first in range(0, len(requests), together):
            rows, wanted = requests[first : first + together], counts[first : first + together]
            hidden, tokens, ahead = _known(rows)
            races = [race_of(request.sampling) for request in rows]
            drawn = any(race.sharpness for race in races)
            keys = [request.race(place) for request in rows for place in range(max(wanted))] if drawn else []
            states = self._cache.draft_states(first, len(rows), hidden.shape[1])
            found = guesser(hidden, tokens, ahead, wanted, races, keys, states)
            self._cache.keep_draft(first, [0 if found is None else len(each) for each in tokens])
            if found is None:
                return None
            for request, state in zip(rows, ahead, strict=True):
                if request.followed is not None:
                    request.followed.caught_up(state)
            guesses += found
        return guesses

    def _one_by_one(self, requests: Sequence[Request], counts: list[int]) -> list[list[int]]:
        self._catch_up(0, requests)
        guesses: list[list[int]] = [[] for _ in requests]
        ahead = _known(requests).ahead[:, None]
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

    def _catch_up(self, first: int, requests: Sequence[Request]) -> None:
        """Have the block follow rows from `first` on to their newest positions."""
        for behind, group in groupby(requests, _behind_about):
            run = list(group)
            if behind:
                hidden, tokens, _ = _known(run)
                counts, longest = list(map(len, tokens)), hidden.shape[1]
                padded = [each + [0] * (longest - len(each)) for each in tokens]
                uneven = min(counts) < longest
                states = self._cache.draft_states(first, len(run), longest, guessed=uneven)
                ahead = self._model.draft(hidden, torch.tensor(padded, device=hidden.device), states)
                if uneven:
                    self._cache.keep_draft(first, counts)
                for row, (request, count) in enumerate(zip(run, counts, strict=True)):
                    request.followed.caught_up(ahead[row, count - 1])
            first += len(run)


class _Known(NamedTuple):
    """What is known of some rows, one at least.

    Attributes:
        hidden: true states that the block has yet to follow, as many as of the row with the most.
        tokens: after them, of each row as many as it has.
        ahead: the block's output at the newest position that it has followed; where it has followed none, anything.
    """

    hidden: Float[Tensor, "B T D"]
    tokens: list[list[int]]
    ahead: Float[Tensor, "B D"]


def _known(requests: Sequence[Request]) -> _Known:
    rows: list[Followed] = [request.followed or Followed() for request in requests]
    most = max(len(row.tokens) for row in rows)
    if len(rows) == 1 and len(rows[0].hidden) == 1:  # which is so nearly always, and takes no copy
        hidden = rows[0].hidden[0].contiguous()[None]
    else:
        some = next(each for row in rows for each in (row.ahead, *row.hidden) if each is not None)
        hidden = some.new_zeros(len(rows), most, some.shape[-1])
        for row, place in zip(rows, hidden, strict=True):
            if row.hidden:
                torch.cat(row.hidden, out=place[: len(row.tokens)])
    ahead = hidden.new_zeros(len(rows), hidden.shape[-1])
    for row, place in zip(rows, ahead, strict=True):
        if row.ahead is not None and not row.tokens:
            place.copy_(row.ahead)
    return _Known(hidden, [row.tokens for row in rows], ahead)


def _behind(request: Request) -> int:
    """Positions that the block has yet to follow."""
    return 0 if request.followed is None else len(request.followed.tokens)


def _behind_about(request: Request) -> int:
    """The same number for rows that can be followed together, those of the last guesses filled up."""
    behind = _behind(request)
    return 1 + MOST_GUESSES if 0 < behind <= 1 + MOST_GUESSES else behind


def _chooses_plainly(request: Request) -> bool:
    """Whether guesses need not know more of a request than how it draws."""
    sampling = request.sampling
    penalties = sampling.repetition_penalty, sampling.frequency_penalty, sampling.presence_penalty
    return penalties == (1, 0, 0) and not sampling.logit_bias and not request.forced


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
