"""How far ahead is guessed in a step, and what became of it."""

from collections.abc import Sequence

from seqloom.serve.adaptive import DraftLength
from seqloom.serve.drafting import MOST_GUESSES
from seqloom.serve.request import Request

_LOOKING = 16
"""One request in so many goes on looking where no guesses pay."""


class Guessing:
    """
    Args:
        border: tokens between places where rows may be remembered, at which a step ends; None remembers nothing.
    """

    def __init__(self, border: int | None) -> None:
        self._border, self._length = border, DraftLength(MOST_GUESSES)
        self._came = 0
        self.tokens_out = 0
        self.drafted, self.accepted = [0] * MOST_GUESSES, [0] * MOST_GUESSES

    def rests(self, running: int) -> bool:
        """Whether the next request that leaves the length open does best without guesses: where none pay, what the
        prediction block does to be ready for them is lost.

        Args:
            running: rows that take a step then.
        """
        self._came += 1
        if not self._length.none_pays(running):
            return False
        if looks := self._came % _LOOKING == 0:
            self._length.look()
        return not looks

    def counts(self, drafting: Sequence[Request], lengths: Sequence[int], running: int) -> list[int]:
        """Guesses that each row can make use of.

        Args:
            lengths: tokens that the rows have seen.
            running: rows that take the step.
        """
        open_ones = [request for request in drafting if request.draft_tokens is None and not request.rests]
        auto = self._length.choose(running) if open_ones else 0
        if auto == 0 and self._length.none_pays(running):
            for request in open_ones:
                request.rests = request.followed is not None
        return [self._most(request, length, auto) for request, length in zip(drafting, lengths, strict=False)]

    def _most(self, request: Request, length: int, auto: int) -> int:
        wanted = auto if request.draft_tokens is None else request.draft_tokens
        most = min(0 if request.rests else wanted, request.remaining - 1)
        return most if self._border is None else min(most, self._border - 1 - length % self._border)

    def count(self, requests: Sequence[Request], guesses: list[list[int]], kept: list[int]) -> None:
        """Take note of a step.

        Args:
            kept: tokens of each row that turned out to belong to its text.
        """
        for request, guess, count in zip(requests, guesses, kept, strict=True):
            self.tokens_out += count
            for place in range(len(guess)):
                self.drafted[place] += 1
                self.accepted[place] += place < count - 1
            if request.finish_reason is None:
                self._length.count(len(guess), count - 1)

    def time(self, rows: int, most: int, seconds: float) -> None:
        """Take note of what a step with so many guesses at most took."""
        self._length.time(rows, most, seconds)
