"""Prefix beam search as it reads, for tests and for machines without a compiler.

Of every prefix ℓ two probabilities are kept, of all paths that read ℓ and end in blank (b) or in its last label (n):

    b'(ℓ)   = y(blank) (b(ℓ) + n(ℓ))
    n'(ℓ)   = y(last of ℓ) n(ℓ)                                     the same label goes on
    n'(ℓ c) = y(c) · (b(ℓ) if c is the last of ℓ else b(ℓ) + n(ℓ))       a new label

and of all prefixes the `beam` best by ln(b + n) + bonus(ℓ). Labels outside the frame's most probable ones are skipped.
Paper: Deep Speech 2, section 3.8, after Hannun et al. (2014).
"""

import copy
import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from torch import Tensor

from seqloom.systems.deep_speech2.prior import Memory, Prior

_NEVER = -math.inf


class Found(NamedTuple):
    """A prefix at the end of a search.

    Attributes:
        labels: its symbols.
        ctc: ln of the probability of all its paths that were kept.
        bonus: of the whole text.
        whole: whether a text may end here.
    """

    labels: tuple[int, ...]
    ctc: float
    bonus: float
    whole: bool


class BeamReference:
    """A search that goes on as frames come."""

    def __init__(self, prior: Prior, beam: int, cutoff_prob: float, cutoff_top_n: int) -> None:
        self._prior, self._beam = prior, beam
        self._cutoff_prob, self._cutoff_top_n = cutoff_prob, cutoff_top_n
        self._alive: dict[tuple[int, ...], tuple[float, float]] = {(): (0.0, _NEVER)}
        self._memory: dict[tuple[int, ...], Memory | None] = {(): prior.start}

    def accept(self, log_probs: Float[Tensor, "T V"]) -> None:
        """Go on with further frames."""
        for frame in log_probs.double().tolist():
            self._step(frame)

    def found(self) -> list[Found]:
        """What is left of the beam, as if no frame followed; in no order."""
        return [
            Found(labels, _add(*pair), *self._prior.finish(memory))
            for labels, pair in self._alive.items()
            if (memory := self._memory[labels]) is not None
        ]

    def copy(self) -> "BeamReference":
        twin = copy.copy(self)
        twin._alive, twin._memory = dict(self._alive), dict(self._memory)
        return twin

    def _step(self, frame: list[float]) -> None:
        symbols = candidates(frame, self._cutoff_prob, self._cutoff_top_n)
        found: dict[tuple[int, ...], list[float]] = {}
        for prefix, (blank, label) in self._alive.items():
            both = _add(blank, label)
            _gather(found, prefix, 0, frame[0] + both)
            for symbol in symbols:
                again = bool(prefix) and symbol == prefix[-1]
                if again:
                    _gather(found, prefix, 1, frame[symbol] + label)
                before = blank if again else both
                if before > _NEVER and self._extends(prefix, symbol):
                    _gather(found, (*prefix, symbol), 1, frame[symbol] + before)
        ranked = sorted(found, key=lambda prefix: (-_add(*found[prefix]) - self._bonus(prefix), prefix))
        self._alive = {prefix: (found[prefix][0], found[prefix][1]) for prefix in ranked[: self._beam]}
        self._memory = {prefix: self._memory[prefix] for prefix in self._alive}

    def _extends(self, prefix: tuple[int, ...], symbol: int) -> bool:
        longer = (*prefix, symbol)
        if longer not in self._memory:
            memory = self._memory[prefix]
            assert memory
            self._memory[longer] = self._prior.extend(memory, symbol)
        return self._memory[longer] is not None

    def _bonus(self, prefix: tuple[int, ...]) -> float:
        memory = self._memory[prefix]
        assert memory
        return memory.bonus


def candidates(frame: list[float], cutoff_prob: float, cutoff_top_n: int) -> list[int]:
    """The labels to consider at a frame: of the most probable symbols, at most so many and none that is needed no more
    for their probabilities to reach the cutoff; the blank, which is always considered, counts among them."""
    ranked = sorted(range(len(frame)), key=lambda symbol: (-frame[symbol], symbol))[:cutoff_top_n]
    before = np.cumsum([0.0, *(math.exp(frame[symbol]) for symbol in ranked[:-1])])
    kept = [symbol for symbol, sum_before in zip(ranked, before, strict=True) if sum_before < cutoff_prob]
    return [symbol for symbol in kept if symbol]


def _gather(found: dict[tuple[int, ...], list[float]], prefix: tuple[int, ...], which: int, log_prob: float) -> None:
    pair = found.setdefault(prefix, [_NEVER, _NEVER])
    pair[which] = _add(pair[which], log_prob)


def _add(a: float, b: float) -> float:
    """ln(e^a + e^b)."""
    low, high = min(a, b), max(a, b)
    return high if low == _NEVER else high + math.log1p(math.exp(low - high))
