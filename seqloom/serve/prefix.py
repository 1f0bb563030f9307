"""Beginnings of texts that need not be computed twice.

A prefix is remembered at borders of pages: the pages of keys and values are shared, and the recurrent states, of fixed
size and by far the larger part of a short text, are copied. A prefix is found by a chain of hashes, each of the one
before and of the tokens of one page. What was not used for the longest time is forgotten, when the copies exceed their
budget or when pages run out.

All tokens are computed by the same operations whether they were read in a prompt or drawn in an answer
(`ops.kernels.invariant`), so answers are as good as prompts here, and a hit changes nothing but the time it takes.
Paper: Nemotron-H on reuse at block borders; post-training notes, recurrent states.
"""

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor

from seqloom.nn.cache import HybridCache, Mark

_PROMPTS = 4
"""A single prompt may leave marks for one in so many parts of the budget."""


class Prefix(NamedTuple):
    """
    Attributes:
        hidden: of the last token, if the prediction block has followed: its entry depends on the token that comes next.
    """

    mark: Mark
    hidden: Float[Tensor, "D"] | None


class PageKeys:
    """The chain of hashes of a text that grows."""

    def __init__(self) -> None:
        self._keys: list[bytes] = []

    def upto(self, ids: Sequence[int], pages: int, page_tokens: int) -> list[bytes]:
        """A key for each of the first pages of a text."""
        while len(self._keys) < pages:
            start = len(self._keys) * page_tokens
            page = array("q", ids[start : start + page_tokens]).tobytes()
            before = self._keys[-1] if self._keys else b""
            self._keys.append(hashlib.blake2b(before + page, digest_size=32).digest())
        return self._keys[:pages]


class PrefixCache:
    """Remembered prefixes of one cache.

    Args:
        rows: of the cache; without a budget the copies may take twice as much memory as their states.
        budget: bytes of all copies.
    """

    def __init__(self, cache: HybridCache, rows: int, budget: int | None) -> None:
        self._cache, self._rows, self._budget = cache, rows, budget
        self._prefixes: OrderedDict[bytes, Prefix] = OrderedDict()  # least recently used first
        self._nbytes = self._copy = 0
        self.query_tokens = self.hit_tokens = 0

    @property
    def reuse(self) -> str:
        """on, or why something cannot be remembered."""
        if not self.fits:
            return f"off: the states of one prefix take {self._copy:,} bytes, and the budget is {self._budget:,}"
        return "on" if self._cache.drafts_revive else "on, but not while drafting: the prediction block is recurrent"

    @property
    def fits(self) -> bool:
        """Whether the budget has room for a single prefix."""
        return self._budget is None or self._copy <= self._budget

    def revive(self, row: int, keys: PageKeys, ids: Sequence[int], drafts: bool) -> Prefix | None:
        """Have an empty row go on from the longest prefix of a text that leaves a token to feed; None if there is none.

        Args:
            drafts: the prediction block will guess in this row, so it must have followed the prefix.
        """
        pages = (len(ids) - 1) // self._cache.page_tokens
        self.query_tokens += len(ids)
        for key in reversed(keys.upto(ids, pages, self._cache.page_tokens)):
            prefix = self._prefixes.get(key)
            if prefix is None or (drafts and prefix.hidden is None):
                continue
            self._prefixes.move_to_end(key)
            while not self._cache.revive(row, prefix.mark):
                if len(self._prefixes) == 1:
                    return None
                self.forget_one()
            self.hit_tokens += prefix.mark.tokens
            return prefix
        return None

    def wants(self, tokens: int, last: int) -> bool:
        """Whether a prompt whose last token is the `last` should be remembered at this place.

        The longest prefix of a prompt always is, and as many others as the budget has room for.
        """
        page = self._cache.page_tokens
        if tokens == 0 or tokens % page or not self.fits:
            return False
        stride, pages, room = 1, last // page, max(1, self._room() // _PROMPTS)
        while pages > stride * room:
            stride *= 2
        return tokens // page == pages or tokens // page % stride == 0

    def keep(self, row: int, keys: PageKeys, ids: Sequence[int], hidden: Float[Tensor, "D"] | None) -> bytes | None:
        """Remember a row that stands at a border of pages; gives the key, for `forget`, if that was new."""
        if not self._cache.drafts_revive:
            hidden = None
        pages = self._cache.lengths[row] // self._cache.page_tokens
        key = keys.upto(ids, pages, self._cache.page_tokens)[-1]
        known = self._prefixes.get(key)
        if known is not None and (known.hidden is not None or hidden is None):
            self._prefixes.move_to_end(key)
            return None
        self.forget(key)
        mark = self._cache.mark(row)
        self._copy = max(self._copy, mark.nbytes)
        if not self.fits:
            self._cache.forget(mark)
            return None
        self._prefixes[key] = Prefix(mark, None if hidden is None else hidden.clone())
        self._nbytes += mark.nbytes
        while self._nbytes > self._limit():
            self.forget_one()
        return key

    def forget(self, key: bytes) -> None:
        """Let go of a prefix, if it is still there."""
        if (prefix := self._prefixes.pop(key, None)) is not None:
            self._cache.forget(prefix.mark)
            self._nbytes -= prefix.mark.nbytes

    def forget_one(self) -> bool:
        """Let go of the prefix that was not used for the longest time; False if there is none."""
        if not self._prefixes:
            return False
        self.forget(next(iter(self._prefixes)))
        return True

    def forget_all(self) -> None:
        """Let go of all, as when the model has changed."""
        while self.forget_one():
            pass

    def _limit(self) -> int:
        return 2 * self._rows * self._copy if self._budget is None else self._budget  # for prompts, and for answers

    def _room(self) -> int:
        """Copies that the budget has room for; pages are as many as copies that take no memory."""
        return self._limit() // self._copy if self._copy else self._cache.pages
