"""What a layer may remember of all rows of an engine: the two kinds of stores, and the room that they are made for.

A store in pages holds something of every token, and has nothing of a row but what the row's table of pages says. A
store in slots holds a state of fixed size for every row. `HybridCache` moves, saves and revives rows through these
methods alone.
"""

from typing import Any, NamedTuple, Protocol, runtime_checkable

from torch import Tensor

from seqloom.nn.paged_kv import PageTables


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

    def rows(self, first: int, count: int, guessed: bool, behind: int) -> Any:
        """A view of some rows, which the layer's `forward` takes as its state in any number of calls.

        Args:
            guessed: all tokens of a call but the first are guesses; `keep` will tell how many tokens count.
            behind: no row has more guesses of earlier calls to catch up with.
        """
        ...


def nbytes_of(saved: Any) -> int:
    """Bytes of all tensors in nested tuples and lists."""
    if isinstance(saved, Tensor):
        return saved.nbytes
    return sum(map(nbytes_of, saved)) if isinstance(saved, tuple | list) else 0
