"""Whole conversations in rows: which go together, and what the model sees of them.

Conversations are sorted by length and each is put into the fullest row that still has room for it (best fit
decreasing); what is too short to fill a row alone fills the gaps of the longer ones. Rows are made once and stay; only
their order changes from epoch to epoch. In a row, every conversation is a document of its own, and a position has a
target where the next token belongs to the same conversation and is learned:

    tokens     <user> What? <assistant> This . <end>   <user> …
    learned                             x    x   x
    target                    This      .  <end>   -
"""

from collections.abc import Sequence
from hashlib import sha256
from typing import Any

import numpy as np

from seqloom.data.rows import NO_TARGET
from seqloom.data.shards import TokenStream


def pack(lengths: Sequence[int], room: int) -> list[list[int]]:
    """Put items into as few rows as best fit decreasing needs.

    Args:
        room: what a row holds; no item is longer.
    Returns:
        the items of each row, by number.
    """
    rows: list[list[int]] = []
    with_room: list[list[int]] = [[] for _ in range(room + 1)]
    rooms = 0  # bit r is set while some row has room for exactly r more
    for item in sorted(range(len(lengths)), key=lambda item: -lengths[item]):
        length = lengths[item]
        assert 0 < length <= room
        if fitting := rooms >> length:
            left = length + (fitting & -fitting).bit_length() - 1
            row = with_room[left].pop()
            rows[row].append(item)
            if not with_room[left]:
                rooms ^= 1 << left
        else:
            left, row = room, len(rows)
            rows.append([item])
        with_room[left - length].append(row)
        rooms |= 1 << (left - length)
    return rows


class PackedRows:
    """Rows of whole conversations, read from three streams."""

    def __init__(self, tokens: TokenStream, learned: TokenStream, rows: TokenStream, facts: dict[str, Any]) -> None:
        """Args:
        tokens: one document for each conversation.
        learned: 1 where the token is learned, 0 elsewhere.
        rows: one document for each row: the numbers of its conversations.
        """
        self.documents: int = facts["documents"]
        self.tokens: int = facts["tokens"]
        self.n_bytes: int = facts["bytes"]
        self.digest = sha256(f"{tokens.digest} {learned.digest} {rows.digest}".encode()).hexdigest()
        self._tokens, self._learned, self._rows = tokens, learned, rows

    def __len__(self) -> int:
        return self._rows.documents

    def fill(self, index: int, tokens: np.ndarray, targets: np.ndarray, documents: np.ndarray) -> None:
        at = 0
        for document, number in enumerate(self._rows.document(index)):
            ids, learned = self._tokens.document(number), self._learned.document(number)
            end = at + len(ids)
            tokens[at:end], documents[at:end] = ids, document
            targets[at : end - 1] = np.where(learned[1:], ids[1:], NO_TARGET)
            at = end
