"""Which utterances make up which minibatch: SortaGrad first, then like lengths in random order.

    epoch 0    sorted by length, short ones first, since CTC costs grow with length and untrained nets diverge
    later      sorted by length, cut into minibatches after a random offset, minibatches shuffled

Every minibatch has the same number of rows, so of n utterances n mod B, drawn anew, rest in each epoch. All of it is a
pure function of seed and step. Deep Speech 2, section 3.3.
"""

from collections.abc import Sequence
from functools import lru_cache

import torch

from seqloom.core.seeds import generator


class Batches:
    """The order of a training set."""

    def __init__(self, frames: Sequence[int], rows: int, seed: int, *, sorta_grad: bool) -> None:
        """
        Args:
            frames: length of every utterance.
            rows: utterances of a minibatch; at most all of them.
        """
        self._frames = torch.tensor(frames)
        self._rows, self._seed, self._sorta_grad = min(rows, len(frames)), seed, sorta_grad
        self.per_epoch = len(frames) // self._rows
        self._epoch = lru_cache(maxsize=2)(self._order)

    def at(self, step: int) -> tuple[int, list[int]]:
        """The epoch of a step, and the utterances of its minibatch."""
        epoch, place = divmod(step, self.per_epoch)
        return epoch, self._epoch(epoch)[place]

    def _order(self, epoch: int) -> list[list[int]]:
        draw = generator(self._seed, "batches", epoch)
        chosen = torch.randperm(len(self._frames), generator=draw)[: self.per_epoch * self._rows]
        by_length = chosen[self._frames[chosen].argsort(stable=True)]  # those of equal length stay shuffled
        if epoch == 0 and self._sorta_grad:
            return by_length.view(-1, self._rows).tolist()
        offset = int(torch.randint(self._rows, (), generator=draw))
        cut = by_length.roll(-offset).view(-1, self._rows)
        return cut[torch.randperm(len(cut), generator=draw)].tolist()
