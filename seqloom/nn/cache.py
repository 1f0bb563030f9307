"""What a hybrid model remembers of many texts at once: pages for keys and values, slots for recurrent states.

Every text has a row. Attention layers write keys and values into pages of some tens of tokens, which a row takes as it
grows and gives back when it ends; Mamba layers keep a state of fixed size in the slot of the row. One table of pages
serves all attention layers, and those of the prediction block, whose entry of a position is made one token later than
that of the backbone.

A mark is a row at a border of pages: its pages, shared by a count of references, and a copy of its recurrent states.
Pages before a border are never written again, so any number of rows may go on from a mark. One entry of the prediction
block is the exception: that of the last position depends on the token that comes next, so whoever revives a mark of a
model with such a block gets a copy of the last page.
Paper: Nemotron-H, section 2; Nemotron 3 Super and Ultra, inference sections.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Int64
from torch import Tensor

from seqloom.nn.page_pool import PagePool
from seqloom.nn.paged_kv import PageTables
from seqloom.nn.stores import PageStore, Room, SlotStore, nbytes_of


class Mark(NamedTuple):
    """A row at a border of pages.

    Attributes:
        tokens: that it has seen.
        pages: that hold their keys and values.
        saved: of every store, the prediction block's last, what is not in pages.
        nbytes: of `saved`.
    """

    tokens: int
    pages: tuple[int, ...]
    saved: list[Any]
    nbytes: int


class _Stack:
    """The stores of layers that see the same tokens, and how many each row has seen."""

    def __init__(self, stores: Sequence[PageStore | SlotStore | None], room: Room, pool: PagePool) -> None:
        self.stores = [store for store in stores if store is not None]
        self.paged = [store for store in self.stores if isinstance(store, PageStore)]
        self.lengths = [0] * room.rows
        self._layers: list[tuple[Any, bool]] = [(store, isinstance(store, PageStore)) for store in stores]
        self._room, self._tables = room, pool.tables
        self._fed = self._behind = 0
        self._views: dict[tuple[int, int, bool, int, int], tuple[Int64[Tensor, "B"], list[Any]]] = {}

    def open(self, first: int, count: int, tokens: int, guessed: bool, spare: int = 0) -> list[Any]:
        key = self.shape(first, count, tokens, guessed, spare)
        if key not in self._views:
            self._views[key] = self._view(*key)
        lengths, views = self._views[key]
        before = self.lengths[first : first + count] + [0] * spare
        if lengths.is_cpu:
            lengths.numpy()[:] = before
        else:
            lengths.copy_(torch.tensor(before))
        for row in range(first, first + count):
            self.lengths[row] += tokens
        self._fed = tokens
        if guessed:
            self._behind = max(self._behind, min(power_of_two(tokens) - 1, self._room.ahead))
        return views

    def shape(self, first: int, count: int, tokens: int, guessed: bool, spare: int) -> tuple[int, int, bool, int, int]:
        """What is fixed of a call's views: rows, whether guessed, guesses to catch up with, and pages of a row."""
        pages = self._room.pages
        if not self._tables.is_cpu:  # where asking a tensor for the longest row would stall
            longest = max(self.lengths[first : first + count], default=0) + tokens
            pages = min(power_of_two(-(-longest // self._room.page_tokens)), pages)
        return first, count + spare, guessed, self._behind, pages

    def _view(
        self, first: int, count: int, guessed: bool, behind: int, pages: int
    ) -> tuple[Int64[Tensor, "B"], list[Any]]:
        """Views for any call on these rows, and the lengths that they see."""
        lengths = torch.zeros(count, dtype=torch.int64, device=self._tables.device)
        tables = PageTables(self._tables[first : first + count, :pages], lengths)
        views: list[Any] = []
        for store, paged in self._layers:
            if store is None or paged:  # in pages, wrong guesses are written over
                views.append(None if store is None else store.rows(first, count, tables))
            else:
                views.append(store.rows(first, count, guessed, behind))
        return lengths, views

    def keep(self, first: int, accepted: list[int]) -> None:
        for row, count in enumerate(accepted, first):
            assert 0 <= count <= self._fed
            self.lengths[row] -= self._fed - count
        for store in self.stores:
            store.keep(first, accepted)

    def save(self, first: int, count: int) -> list[Any]:
        rows = range(first, first + count)
        return [(row, self.lengths[row], [store.save(row) for store in self.stores]) for row in rows]

    def load(self, saved: list[Any]) -> None:
        for row, length, contents in saved:
            self.lengths[row] = length
            for store, content in zip(self.stores, contents, strict=True):
                store.load(row, content)


class HybridCache:
    """The memory of so many rows over so many pages, of which nobody owns any at first.

    Args:
        layers: the store of every layer of the backbone, None where a layer remembers nothing.
        draft: the same of the prediction block; empty without one.
        room: that the stores were made for.
        device: where they are.
    """

    def __init__(
        self,
        layers: Sequence[PageStore | SlotStore | None],
        draft: Sequence[PageStore | SlotStore | None],
        room: Room,
        device: torch.device = torch.device("cpu"),  # noqa: B008
    ) -> None:
        self.page_tokens, self.pages = room.page_tokens, room.pages
        self._pool = PagePool(room.rows, room.pages, device)
        self._backbone, self._draft = _Stack(layers, room, self._pool), _Stack(draft, room, self._pool)
        self._stores = [*self._backbone.stores, *self._draft.stores]
        self.drafts_revive = all(store.save(0) is None for store in self._draft.stores)
        """Whether the prediction block can go on from a mark: a recurrent state has no way back to before the last
        token, on which its entry depends."""

    @property
    def lengths(self) -> list[int]:
        """Tokens that each row has seen."""
        return self._backbone.lengths

    @property
    def free_pages(self) -> int:
        return self._pool.free

    @property
    def pages_in_rows(self) -> int:
        """Pages that some row holds; marks alone hold the rest of those that are not free."""
        return self._pool.in_rows

    def reserve(self, row: int, tokens: int) -> bool:
        """Have a row hold the pages for so many more tokens; False takes nothing, since too few are free."""
        return self._pool.lend(row, self.pages_for(self.lengths[row] + tokens) - len(self._pool.held[row]))

    def pages_for(self, tokens: int) -> int:
        """Pages that a text of so many tokens needs."""
        return -(-tokens // self.page_tokens)

    def states(self, first: int, count: int, tokens: int, guessed: bool = False, spare: int = 0) -> list[Any]:
        """Views for one call of the backbone on so many tokens of each of some rows, which have been reserved; the next
        call of the same `shape` is given the same views.

        Args:
            spare: rows that the call has besides, behind the others; they are empty now, and nobody reads what comes
                of them.
        """
        for row in range(first, first + count):
            assert self.pages_for(self.lengths[row] + tokens) <= len(self._pool.held[row]), "reserve comes first"
        assert not any(self._pool.held[first + count : first + count + spare])
        return self._backbone.open(first, count, tokens, guessed, spare)

    def go_on(self, first: int, count: int, tokens: int) -> None:
        """Have a call that is opened see so many more tokens of its rows, which have been reserved."""
        for row in range(first, first + count):
            self.lengths[row] += tokens
            assert self.pages_for(self.lengths[row]) <= len(self._pool.held[row])

    def shape(self, first: int, count: int, tokens: int, guessed: bool, spare: int = 0) -> tuple[Any, ...]:
        """Calls of the backbone of the same shape do the same operations over the same memory."""
        return tokens, *self._backbone.shape(first, count, tokens, guessed, spare)

    def keep(self, first: int, accepted: list[int]) -> None:
        """After a guessed call on rows from `first` on: how many of its tokens count in each."""
        self._backbone.keep(first, accepted)

    def draft_states(self, first: int, count: int, tokens: int, guessed: bool = False) -> list[Any]:
        """Views for one call of the prediction block, within what is reserved."""
        return self._draft.open(first, count, tokens, guessed)

    def keep_draft(self, first: int, accepted: list[int]) -> None:
        """As `keep`, of the prediction block."""
        self._draft.keep(first, accepted)

    def save_draft(self, first: int, count: int) -> list[Any]:
        """Where the prediction block is now, for `load_draft` after it has guessed."""
        return self._draft.save(first, count)

    def load_draft(self, saved: list[Any]) -> None:
        self._draft.load(saved)

    def save_rows(self, first: int, count: int) -> list[Any]:
        """What layers of the backbone remember of rows beside their pages, for `load_rows` after trial calls."""
        return self._backbone.save(first, count)

    def load_rows(self, saved: list[Any]) -> None:
        self._backbone.load(saved)

    def clear(self, row: int) -> None:
        """Make a row ready for the beginning of a text."""
        self.release(row)
        for store in self._stores:
            store.clear(row)

    def release(self, row: int) -> None:
        """Give the pages of a row back; it has to be cleared or revived before it is used again."""
        self._pool.release(row)
        self._backbone.lengths[row] = self._draft.lengths[row] = 0

    def move(self, source: int, target: int) -> None:
        """Have a row go on in an empty place, and leave its own empty."""
        assert source != target
        self._pool.move(source, target)
        for stack in (self._backbone, self._draft):
            stack.lengths[target], stack.lengths[source] = stack.lengths[source], 0
        for store in self._stores:
            store.move(source, target)

    def mark(self, row: int) -> Mark:
        """Hold on to a row as it is now; it stands at a border of pages and goes on freely."""
        tokens = self.lengths[row]
        assert tokens > 0 == tokens % self.page_tokens
        pages = tuple(self._pool.held[row][: tokens // self.page_tokens])
        self._pool.keep(pages)
        saved = [store.save(row) for store in self._stores]
        return Mark(tokens, pages, saved, nbytes_of(saved))

    def revive(self, row: int, mark: Mark) -> bool:
        """Have an empty row go on from a mark, its prediction block from one token before; False changes nothing, since
        no page is free for the copy."""
        assert not self._pool.held[row]
        copied = bool(self._draft.stores)
        if copied and not self._pool.free:
            return False
        self._pool.share(row, mark.pages[: len(mark.pages) - copied])
        if copied:
            self._pool.lend(row, 1)
            for paged in (*self._backbone.paged, *self._draft.paged):
                paged.copy_page(mark.pages[-1], self._pool.held[row][-1])
        for store, saved in zip(self._stores, mark.saved, strict=True):
            store.load(row, saved)
        self._backbone.lengths[row], self._draft.lengths[row] = mark.tokens, mark.tokens - 1
        return True

    def forget(self, mark: Mark) -> None:
        """Let go of a mark."""
        self._pool.drop(mark.pages)


def power_of_two(count: int) -> int:
    """The next power of two, so that few shapes come up."""
    return 1 << (count - 1).bit_length()
