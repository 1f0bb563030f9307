"""Rows for training: tokens with targets and document numbers, by position.

Row r of a text stream with rows of T tokens holds tokens r·T .. r·T + T - 1; one more token is read for the last
target. The end of a stream is padded to a full row. A token whose successor belongs to another document has no target,
and equal document numbers say which tokens may see each other. Rows of whole conversations are made in `packing.py`.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from jaxtyping import Int32, Int64
from torch import Tensor

from seqloom.data.shards import TokenStream

NO_TARGET = -100
NO_DOCUMENT = -1


class Rows(NamedTuple):
    """A batch of rows."""

    tokens: Int64[Tensor, "B T"]
    targets: Int64[Tensor, "B T"]
    """The next token; -100 where there is none to learn."""
    documents: Int32[Tensor, "B T"]
    """Counted from 0 in each row, rising; -1 marks padding."""


class Order(Protocol):
    """Says which row of which store stands at a position."""

    def __len__(self) -> int: ...

    def locate(self, position: int) -> tuple[int, int]:
        """Store and row at a position."""
        ...


class RowStore(Protocol):
    """The rows of one side of a source."""

    documents: int
    tokens: int
    n_bytes: int
    """Bytes of text that the tokens stand for."""
    digest: str
    """SHA-256 of the tokens, and of whatever else decides the rows but their length."""

    def __len__(self) -> int:
        """How many different rows there are."""
        ...

    def fill(self, index: int, tokens: np.ndarray, targets: np.ndarray, documents: np.ndarray) -> None:
        """Write a row over one of padding."""
        ...


class Split(NamedTuple):
    """The rows of one source."""

    train: RowStore
    valid: RowStore
    facts: dict[str, Any]
    """What was found in the source, for the report."""


class RowSource:
    """Rows by position; the same position always gives the same row."""

    def __init__(self, stores: Sequence[RowStore], order: Order, length: int, pad: int) -> None:
        """Args:
        length: tokens per row (T).
        pad: token id to fill up rows with.
        """
        self._stores, self._order, self._length, self._pad = stores, order, length, pad

    def __len__(self) -> int:
        """How many different rows there are."""
        return len(self._order)

    def rows(self, positions: Sequence[int]) -> Rows:
        """The rows at some positions."""
        shape = (len(positions), self._length)
        tokens = np.full(shape, self._pad, dtype=np.int64)
        targets = np.full(shape, NO_TARGET, dtype=np.int64)
        documents = np.full(shape, NO_DOCUMENT, dtype=np.int32)
        for row, position in enumerate(positions):
            store, index = self._order.locate(position)
            self._stores[store].fill(index, tokens[row], targets[row], documents[row])
        return Rows(torch.from_numpy(tokens), torch.from_numpy(targets), torch.from_numpy(documents))


class StreamRows:
    """A text stream, cut into rows wherever they are full."""

    def __init__(self, stream: TokenStream, length: int) -> None:
        self.documents, self.tokens, self.n_bytes = stream.documents, stream.tokens, stream.n_bytes
        self.digest = stream.digest
        self._stream, self._length = stream, length

    def __len__(self) -> int:
        """Rows needed for every token to be a target once (but for the very first)."""
        return max(1, -(-(self.tokens - 1) // self._length))

    def fill(self, index: int, tokens: np.ndarray, targets: np.ndarray, documents: np.ndarray) -> None:
        start = index * self._length
        ids = self._stream.read(start, start + self._length + 1)
        owners = self._stream.document_of(start, start + len(ids))
        inputs, followed = min(len(ids), self._length), len(ids) - 1
        tokens[:inputs] = ids[:inputs]
        documents[:inputs] = owners[:inputs] - owners[0]
        targets[:followed] = np.where(owners[1:] == owners[:-1], ids[1:], NO_TARGET)
