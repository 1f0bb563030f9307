"""Rows for training: stretches of a token stream with targets and document numbers.

Row r of a stream with rows of T tokens holds tokens r·T .. r·T + T - 1; one more token is read for the last target. The
end of a stream is padded to a full row. A token whose successor belongs to another document has no target, and equal
document numbers say which tokens may see each other.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

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
    """Says which row of which stream stands at a position."""

    def __len__(self) -> int: ...

    def locate(self, position: int) -> tuple[int, int]:
        """Stream and row at a position."""
        ...


class RowSource:
    """Rows by position; the same position always gives the same row."""

    def __init__(self, streams: Sequence[TokenStream], order: Order, length: int, pad: int) -> None:
        """Args:
        length: tokens per row (T).
        pad: token id to fill the end of a stream with.
        """
        self._streams, self._order, self._length, self._pad = streams, order, length, pad

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
            stream, index = self._order.locate(position)
            self._fill(self._streams[stream], index, tokens[row], targets[row], documents[row])
        return Rows(torch.from_numpy(tokens), torch.from_numpy(targets), torch.from_numpy(documents))

    def _fill(
        self, stream: TokenStream, index: int, tokens: np.ndarray, targets: np.ndarray, documents: np.ndarray
    ) -> None:
        start = index * self._length
        ids = stream.read(start, start + self._length + 1)
        owners = stream.document_of(start, start + len(ids))
        inputs, followed = min(len(ids), self._length), len(ids) - 1
        tokens[:inputs] = ids[:inputs]
        documents[:inputs] = owners[:inputs] - owners[0]
        targets[:followed] = np.where(owners[1:] == owners[:-1], ids[1:], NO_TARGET)


def row_count(stream: TokenStream, length: int) -> int:
    """Rows needed for every token of a stream to be a target once (but for the very first)."""
    return max(1, -(-(stream.tokens - 1) // length))
