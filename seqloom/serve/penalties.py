"""Penalties for tokens that were there before.

    in prompt or answer   logit / repetition where it is positive, logit · repetition where it is not
    in the answer         logit - frequency · (how often) - presence

Papers: Keskar et al., "CTRL" (2019), section 4.1, for repetition; the others are those of OpenAI's API reference.
"""

from collections.abc import Sequence
from typing import Self

import numpy as np
from jaxtyping import Float32

from seqloom.serve.config import Sampling


class Penalties:
    """The penalties of one request and the tokens that they apply to."""

    def __init__(self, repetition: float, frequency: float, presence: float, prompt: Sequence[int]) -> None:
        self._repetition, self._frequency, self._presence = repetition, frequency, presence
        seen = np.unique(np.array(prompt if repetition != 1 else [], dtype=np.int64))
        self._ids = np.concatenate([seen, np.zeros(64, dtype=np.int64)])
        self._counts = np.zeros(len(self._ids), dtype=np.float32)
        self._at = {int(index): at for at, index in enumerate(seen)}

    @classmethod
    def of(cls, sampling: Sampling, prompt: Sequence[int]) -> Self | None:
        """Those of a request; None if there are none."""
        values = sampling.repetition_penalty, sampling.frequency_penalty, sampling.presence_penalty
        return None if values == (1, 0, 0) else cls(*values, prompt)

    def take(self, token: int) -> None:
        """Count a token of the answer."""
        at = self._at.setdefault(token, len(self._at))
        if at == len(self._ids):
            self._ids, self._counts = (np.concatenate([old, np.zeros_like(old)]) for old in (self._ids, self._counts))
        self._ids[at] = token
        self._counts[at] += 1

    def apply(self, logits: Float32[np.ndarray, "V"]) -> None:
        """Change the logits in place."""
        ids, counts = self._ids[: len(self._at)], self._counts[: len(self._at)]
        scores = logits[ids]
        scores = np.where(scores > 0, scores / self._repetition, scores * self._repetition)
        logits[ids] = scores - counts * self._frequency - (counts > 0) * self._presence
