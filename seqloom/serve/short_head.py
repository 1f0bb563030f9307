"""Logits of a guess, from the part of the vocabulary that texts here are made of.

The output head is the largest matrix that a guess has to read, and most of its rows are for tokens that hardly come.
An eighth of them is copied, those of the tokens that came most often and most lately; all others cannot be guessed,
which costs a wrong guess where one of them comes, and never changes an answer. The choice is made anew when too many
came that are not in it.
Paper: Zhao et al., "FR-Spec: accelerating large-vocabulary language models via frequency-ranked speculative sampling"
(2025), which ranks once, by a corpus.
"""

from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
import torch
from jaxtyping import Float, Float32
from torch import Tensor

from seqloom.nn.mtp_chain import Guesser
from seqloom.serve.contract import LanguageModel

SHARE, LEAST = 8, 1024
"""One token in so many can be guessed, and no fewer than these."""
_MISSED = 32
"""Tokens that could not have been guessed, before the choice is made anew."""


class ShortHead:
    """A head for guesses alone."""

    def __init__(self, model: LanguageModel) -> None:
        self._model, self._size = model, min(max(model.vocab_size // SHARE, LEAST), model.vocab_size)
        self._device = next(model.parameters()).device
        self._came: Counter[int] = Counter()
        self._counts = np.zeros(model.vocab_size, dtype=np.float32)  # before those
        self._missed = _MISSED
        self._known: set[int] = set()
        self._tokens = torch.empty(0, dtype=torch.int64)
        self._head: Callable[[Tensor], Tensor] | None = None
        self._guesser: Guesser | None = None
        self._logits = torch.empty(0, 0)

    def count(self, tokens: Sequence[int]) -> None:
        """Take in tokens that came."""
        for token in tokens:  # mostly one, for which an array would take longer
            self._came[token] += 1
            self._missed += token not in self._known

    def __call__(self, ahead: Float[Tensor, "B D"]) -> Float32[Tensor, "B V"]:
        """Logits of all tokens, of those that cannot be guessed -infinity; good until the next call."""
        self._renew()
        if self._head is None:
            return self._model.head(ahead[:, None])[:, 0]
        if len(self._logits) != len(ahead):
            self._logits = torch.full((len(ahead), self._model.vocab_size), -torch.inf, device=ahead.device)
        return self._logits.index_copy_(1, self._tokens, self._head(ahead).float())

    def look_again(self) -> None:
        """Have what guesses several tokens in one call look at the model as it is now."""
        if self._guesser is not None:
            self._guesser.look_again()

    def guesser(self) -> Guesser | None:
        """What guesses several of these tokens in one call; None if nothing does."""
        self._renew()
        return self._guesser

    def _renew(self) -> None:
        """Choose anew if that is due: the tokens that came most; of others, the first ids, which tokenizers give to
        what is frequent."""
        if self._missed < _MISSED:
            return
        self._counts[list(self._came)] += list(self._came.values())
        chosen = np.sort(np.argsort(-self._counts, kind="stable")[: self._size])
        self._counts *= 0.5  # what came lately counts more
        self._came.clear()
        self._missed, self._known = 0, set(chosen.tolist())
        self._tokens = torch.from_numpy(chosen).to(self._device)
        self._head, self._guesser = self._model.head_of(self._tokens), None
        if self._head is None:
            self._known = set(range(self._model.vocab_size))
        else:
            self._guesser = self._model.guesser(self._head, self._tokens)
        self._logits = torch.empty(0, 0)
