"""The decoder without search: the most probable path, repeats as one symbol, blanks as none.

It has the surface of `beam_search.Decoder` and costs next to nothing, so servers use it where no language model is.
Deep Speech 2, section 3.8.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from seqloom.core.errors import DataError
from seqloom.systems.deep_speech2.beam_search import Hypothesis


class Greedy:
    """A decoder that goes on as frames come.

    Args:
        symbols: of the alphabet; empty ones are never said.
    """

    def __init__(self, symbols: tuple[str, ...]) -> None:
        self._symbols = symbols
        self._unused = [label for label, symbol in enumerate(symbols) if label and not symbol]
        self.reset()

    def reset(self) -> None:
        """Begin a new utterance."""
        self._labels: tuple[int, ...] = ()
        self._before, self._score = 0, 0.0

    def accept(self, log_probs: Float[Tensor, "T V"]) -> None:
        """Go on with further frames.

        Raises:
            DataError: one is not a number.
        """
        if bool(log_probs.isnan().any()):
            raise DataError("the log-probabilities to decode are not all numbers")
        if self._unused:
            log_probs = log_probs.index_fill(1, torch.tensor(self._unused, device=log_probs.device), -math.inf)
        best, path = log_probs.max(-1)
        added = []
        for label, score in zip(path.tolist(), best.tolist(), strict=True):
            if label and label != self._before:
                added.append(label)
            self._before = label
            self._score += score  # one by one, so the pieces they come in change no bit
        self._labels += tuple(added)

    def result(self, best: int = 1) -> list[Hypothesis]:
        """The one text that there is; its confidence is the probability of its path."""
        text = " ".join("".join(self._symbols[label] for label in self._labels).split())
        return [Hypothesis(text, self._labels, self._score, self._score, math.exp(self._score))][:best]
