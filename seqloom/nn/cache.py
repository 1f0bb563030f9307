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
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from seqloom.nn.paged_kv import PageTables


@runtime_checkable
class LayerStore(Protocol):
    """What one layer remembers of all rows."""

    def clear(self, row: int) -> None:
        """Forget a row, whatever is in it; every row is cleared or loaded before it is used."""
        ...

    def move(self, source: int, target: int) -> None:
        """Have a row go on in another place; what is left behind is of no use."""
        ...

    def save(self, row: int) -> Any:
        """A copy of what is not in pages; None if all is."""
        ...

    def load(self, row: int, saved: Any) -> None:
        """Put a row into the state that was saved."""
        ...

    def keep(self, first: int, accepted: list[int]) -> None:
        """Of the guessed call before, let only so many tokens count in each row from `first` on."""
        ...

    @property
    def nbytes(self) -> int: ...


@runtime_checkable
class PageStore(LayerStore, Protocol):
    """That of a layer which remembers every token."""

    def rows(self, first: int, count: int, tables: PageTables) -> Any:
        """A view of some rows, which the layer's `forward` takes as its state in any number of calls."""
        ...

    def copy_page(self, source: int, target: int) -> None:
        """Make a page the same as another."""
        ...


@runtime_checkable
class SlotStore(LayerStore, Protocol):
    """That of a layer whose memory has a fixed size."""

    def rows(self, first: int, count: int, guessed: bool) -> Any:
        """A view of some rows, which the layer's `forward` takes as its state in any number of calls.

        Args:
            guessed: all tokens of a call but the first are guesses; `keep` will tell how many tokens count.
        """
        ...


class Room(NamedTuple):
    """How much an engine can remember.

    Attributes:
        rows: texts at a time.
        pages: of all rows together.
        page_tokens: tokens that a page holds.
        ahead: most guesses of one call.
    """

    rows: int
    pages: int
    page_tokens: int
    ahead: int


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

    def __init__(self, stores: Sequence[PageStore | SlotStore | None], rows: int) -> None:
        self.stores = [store for store in stores if store is not None]
        self.paged = [store for store in self.stores if isinstance(store, PageStore)]
        self.lengths = [0] * rows
        self._layers: list[tuple[Any, bool]] = [(store, isinstance(store, PageStore)) for store in stores]
        self._fed = 0
        self._views: dict[tuple[int, int, bool], tuple[Int64[np.ndarray, "B"], list[Any]]] = {}

    def open(self, first: int, count: int, tokens: int, pages: Tensor, guessed: bool) -> list[Any]:
        if (first, count, guessed) not in self._views:
            self._views[first, count, guessed] = self._view(first, count, pages, guessed)
        lengths, views = self._views[first, count, guessed]
        lengths[:] = self.lengths[first : first + count]
        for row in range(first, first + count):
            self.lengths[row] += tokens
        self._fed = tokens
        return views

    def _view(self, first: int, count: int, pages: Tensor, guessed: bool) -> tuple[Int64[np.ndarray, "B"], list[Any]]:
        """Views for any call on these rows, and where the lengths lie that they see."""
        tables = PageTables(pages[first : first + count], torch.zeros(count, dtype=torch.int64))
        views: list[Any] = []
        for store, paged in self._layers:
            if store is None or paged:  # in pages, wrong guesses are written over
                views.append(None if store is None else store.rows(first, count, tables))
            else:
                views.append(store.rows(first, count, guessed))
        return tables.lengths.numpy(), views

    def keep(self, first: int, accepted: list[int]) -> None:
        for row, count in enumerate(accepted, first):
            assert 0 < count <= self._fed
            self.lengths[row] -= self._fed - count
        for store in self.stores:
            store.keep(first, accepted)


class HybridCache:
    """The memory of so many rows over so many pages, of which nobody owns any at first.

    Args:
        layers: the store of every layer of the backbone, None where a layer remembers nothing.
        draft: the same of the prediction block; empty without one.
        room: that the stores were made for.
    """

    def __init__(
        self, layers: Sequence[PageStore | SlotStore | None], draft: Sequence[PageStore | SlotStore | None], room: Room
    ) -> None:
        self.page_tokens = room.page_tokens
        self.pages, rows = room.pages, room.rows
        self._backbone, self._draft = _Stack(layers, rows), _Stack(draft, rows)
        self._stores = [*self._backbone.stores, *self._draft.stores]
        self._tables = torch.zeros(rows, room.pages, dtype=torch.int32)  # entries beyond what is held mean nothing
        self._held: list[list[int]] = [[] for _ in range(rows)]
        self._references = [0] * room.pages
        self._free = list(range(room.pages - 1, -1, -1))
        self.drafts_revive = all(store.save(0) is None for store in self._draft.stores)
        """Whether the prediction block can go on from a mark: a recurrent state has no way back to before the last
        token, on which its entry depends."""

    @property
    def lengths(self) -> list[int]:
        """Tokens that each row has seen."""
        return self._backbone.lengths

    @property
    def free_pages(self) -> int:
        return len(self._free)

    @property
    def pages_in_rows(self) -> int:
        """Pages that some row holds; marks alone hold the rest of those that are not free."""
        return len({page for held in self._held for page in held})

    def reserve(self, row: int, tokens: int) -> bool:
        """Have a row hold the pages for so many more tokens; False takes nothing, since too few are free."""
        held = self._held[row]
        wanted = self.pages_for(self.lengths[row] + tokens) - len(held)
        if wanted > len(self._free):
            return False
        for _ in range(wanted):
            self._hold(row, self._take())
        return True

    def pages_for(self, tokens: int) -> int:
        """Pages that a text of so many tokens needs."""
        return -(-tokens // self.page_tokens)

    def states(self, first: int, count: int, tokens: int, guessed: bool = False) -> list[Any]:
        """Views for one call of the backbone on so many tokens of each of some rows, which have been reserved; the next
        call on the same rows is given the same views."""
        for row in range(first, first + count):
            assert self.pages_for(self.lengths[row] + tokens) <= len(self._held[row]), "reserve comes first"
        return self._backbone.open(first, count, tokens, self._tables, guessed)

    def keep(self, first: int, accepted: list[int]) -> None:
        """After a guessed call on rows from `first` on: how many of its tokens count in each."""
        self._backbone.keep(first, accepted)

    def draft_states(self, first: int, count: int, tokens: int, guessed: bool = False) -> list[Any]:
        """Views for one call of the prediction block, within what is reserved."""
        return self._draft.open(first, count, tokens, self._tables, guessed)

    def keep_draft(self, first: int, accepted: list[int]) -> None:
        """As `keep`, of the prediction block."""
        self._draft.keep(first, accepted)

    def save_draft(self, first: int, count: int) -> list[Any]:
        """Where the prediction block is now, for `load_draft` after it has guessed."""
        rows = range(first, first + count)
        return [(row, self._draft.lengths[row], [store.save(row) for store in self._draft.stores]) for row in rows]

    def load_draft(self, mark: list[Any]) -> None:
        for row, length, saved in mark:
            self._draft.lengths[row] = length
            for store, content in zip(self._draft.stores, saved, strict=True):
                store.load(row, content)

    def clear(self, row: int) -> None:
        """Make a row ready for the beginning of a text."""
        self.release(row)
        for store in self._stores:
            store.clear(row)

    def release(self, row: int) -> None:
        """Give the pages of a row back; it has to be cleared or revived before it is used again."""
        for page in self._held[row]:
            self._drop(page)
        self._held[row] = []
        self._backbone.lengths[row] = self._draft.lengths[row] = 0

    def move(self, source: int, target: int) -> None:
        """Have a row go on in an empty place, and leave its own empty."""
        assert source != target
        assert not self._held[target]
        for stack in (self._backbone, self._draft):
            stack.lengths[target], stack.lengths[source] = stack.lengths[source], 0
        self._held[target], self._held[source] = self._held[source], []
        self._tables[target] = self._tables[source]
        for store in self._stores:
            store.move(source, target)

    def mark(self, row: int) -> Mark:
        """Hold on to a row as it is now; it stands at a border of pages and goes on freely."""
        tokens = self.lengths[row]
        assert tokens > 0 == tokens % self.page_tokens
        pages = tuple(self._held[row][: tokens // self.page_tokens])
        for page in pages:
            self._references[page] += 1
        saved = [store.save(row) for store in self._stores]
        return Mark(tokens, pages, saved, _nbytes(saved))

    def revive(self, row: int, mark: Mark) -> bool:
        """Have an empty row go on from a mark, its prediction block from one token before; False changes nothing, since
        no page is free for the copy."""
        assert not self._held[row]
        copied = bool(self._draft.stores)
        if copied and not self._free:
            return False
        for page in mark.pages[: len(mark.pages) - copied]:
            self._references[page] += 1
            self._hold(row, page)
        if copied:
            page = self._take()
            self._hold(row, page)
            for paged in (*self._backbone.paged, *self._draft.paged):
                paged.copy_page(mark.pages[-1], page)
        for store, saved in zip(self._stores, mark.saved, strict=True):
            store.load(row, saved)
        self._backbone.lengths[row], self._draft.lengths[row] = mark.tokens, mark.tokens - 1
        return True

    def forget(self, mark: Mark) -> None:
        """Let go of a mark."""
        for page in mark.pages:
            self._drop(page)

    def _take(self) -> int:
        page = self._free.pop()
        self._references[page] = 1
        return page

    def _hold(self, row: int, page: int) -> None:
        self._tables[row, len(self._held[row])] = page
        self._held[row].append(page)

    def _drop(self, page: int) -> None:
        self._references[page] -= 1
        assert self._references[page] >= 0
        if not self._references[page]:
            self._free.append(page)


def _nbytes(saved: Any) -> int:
    """Bytes of all tensors in nested tuples and lists."""
    if isinstance(saved, Tensor):
        return saved.nbytes
    return sum(map(_nbytes, saved)) if isinstance(saved, tuple | list) else 0
