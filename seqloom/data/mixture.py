"""The order of rows as a pure function of seed and position: no loader, no state, nothing to save.

A short table, repeated for ever, says which source each position draws from, so shares hold over every stretch of its
length. How many rows of a source lie before a position follows in closed form, across phases too, and that count is the
source's own position: epoch and place in it. Within an epoch, rows follow a keyed permutation that needs no memory.
Format-preserving permutation: Black and Rogaway 2002 (Feistel network with cycle walking).
"""

import bisect
from collections.abc import Sequence
from functools import lru_cache
from hashlib import blake2b
from typing import NamedTuple

import numpy as np

from seqloom.core.seeds import derive

TABLE_LENGTH = 2048
ROUNDS = 6


class Permutation:
    """A bijection of 0..size-1 onto itself, different for every key."""

    def __init__(self, size: int, key: int) -> None:
        self._size = size
        self._half_bits = max(1, ((size - 1).bit_length() + 1) // 2)
        self._keys = [key.to_bytes(8, "little") + bytes([number]) for number in range(ROUNDS)]

    def __call__(self, index: int) -> int:
        """Where `index` goes."""
        assert 0 <= index < self._size
        index = self._network(index)
        while index >= self._size:  # the network permutes the next power of 4; follow the cycle back inside
            index = self._network(index)
        return index

    def _network(self, index: int) -> int:
        mask = (1 << self._half_bits) - 1
        left, right = index >> self._half_bits, index & mask
        for key in self._keys:
            digest = blake2b(right.to_bytes(8, "little"), digest_size=8, key=key).digest()
            left, right = right, left ^ (int.from_bytes(digest, "little") & mask)
        return left << self._half_bits | right


class _Phase(NamedTuple):
    start: int
    drawn_before: np.ndarray
    """[sources] rows drawn from each source in earlier phases."""
    table: np.ndarray
    """[length] source of each slot."""
    drawn_within: np.ndarray
    """[length + 1, sources] rows drawn from each source in the slots before."""

    def drawn(self, position: int) -> np.ndarray:
        turns, slot = divmod(position - self.start, len(self.table))
        return self.drawn_before + turns * self.drawn_within[-1] + self.drawn_within[slot]


class Mixture:
    """An endless order over the rows of several sources."""

    def __init__(self, rows: Sequence[int], phases: Sequence[tuple[int, Sequence[float]]], seed: int) -> None:
        """Args:
        rows: how many rows each source has.
        phases: first position and weights of each phase, rising; the first begins at 0.
        """
        self.rows = tuple(rows)
        self._seed = seed
        self._phases: list[_Phase] = []
        before = np.zeros(len(rows), dtype=np.int64)
        for number, (start, weights) in enumerate(phases):
            if self._phases:
                before = self._phases[-1].drawn(start)
            table = _table(weights, derive(seed, "mixture", number))
            within = np.zeros((len(table) + 1, len(rows)), dtype=np.int64)
            within[1:] = np.cumsum(table[:, None] == np.arange(len(rows)), axis=0)
            self._phases.append(_Phase(start, before, table, within))
        self._permutation = lru_cache(maxsize=2 * len(rows))(self._new_permutation)

    def __len__(self) -> int:
        return sum(self.rows)

    def locate(self, position: int) -> tuple[int, int]:
        """The source of a position, and the row in it."""
        phase = self._phase(position)
        source = int(phase.table[(position - phase.start) % len(phase.table)])
        epoch, index = divmod(int(phase.drawn(position)[source]), self.rows[source])
        return source, self._permutation(source, epoch)(index)

    def drawn(self, position: int) -> list[int]:
        """How many rows of each source lie before a position."""
        return [int(count) for count in self._phase(position).drawn(position)]

    def _phase(self, position: int) -> _Phase:
        return self._phases[bisect.bisect_right(self._phases, position, key=lambda phase: phase.start) - 1]

    def _new_permutation(self, source: int, epoch: int) -> Permutation:
        return Permutation(self.rows[source], derive(self._seed, "rows", source, epoch))


class InOrder:
    """Every row of every source once, one after the other."""

    def __init__(self, rows: Sequence[int]) -> None:
        self._ends = np.cumsum(rows)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def locate(self, position: int) -> tuple[int, int]:
        """The source of a position, and the row in it."""
        source = int(np.searchsorted(self._ends, position, side="right"))
        return source, position - (int(self._ends[source - 1]) if source else 0)


def _table(weights: Sequence[float], key: int) -> np.ndarray:
    """Slots in proportion to the weights (largest remainder; at least one each), in keyed order."""
    shares = np.array(weights, dtype=np.float64) / sum(weights) * TABLE_LENGTH
    slots = np.maximum(np.floor(shares), shares > 0).astype(np.int64)
    for source in np.argsort(slots - shares, kind="stable")[: max(0, TABLE_LENGTH - slots.sum())]:
        slots[source] += 1
    table = np.repeat(np.arange(len(slots)), slots)
    return table[sorted(range(len(table)), key=lambda slot: derive(key, slot))]
