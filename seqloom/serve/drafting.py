"""Speculative decoding: guess several tokens cheaply, then check all of them in one pass of the model.

A guess is kept exactly when it is the token that would have been drawn in its place, so an answer does not depend on
how many tokens were guessed, nor on how well. Guesses are drawn with the noise of the place they guess for
(`sampling`), which makes guess and draw agree as often as their distributions do.

The prediction block keeps keys and values of its own. The entry of a position can be made only when the token after it
is known, and must be made from the backbone's true hidden state; entries made from the block's own output while
guessing are dropped again.
Paper: Nemotron 3 white paper and Super, MTP sections.
"""

from collections.abc import Callable

from jaxtyping import Float
from torch import Tensor

from seqloom.serve.contract import LanguageModel, restore, snapshot, to_tensor

Choose = Callable[[Tensor, int], int]
"""(logits of shape V, places ahead) -> token."""


class MtpDrafter:
    """Guesses the tokens of one row with the model's own prediction block."""

    def __init__(self, model: LanguageModel) -> None:
        assert model.mtp is not None
        self._model = model
        self._states = model.mtp.new_states(1)
        self._ahead: Float[Tensor, "1 1 D"] | None = None

    def follow(self, hidden: Float[Tensor, "1 T D"], next_tokens: list[int]) -> None:
        """Take in the true hidden states of the next positions and the token that came after each."""
        self._ahead = self._model.draft(hidden, to_tensor([next_tokens], self._model), self._states)[:, -1:]

    def propose(self, count: int, choose: Choose) -> list[int]:
        """Guess the tokens that come after the last one followed; none before any was followed."""
        guesses: list[int] = []
        if self._ahead is None:
            return guesses
        ahead, mark = self._ahead, snapshot(self._states)
        for place in range(count):
            if guesses:
                ahead = self._model.draft(ahead, to_tensor([guesses[-1:]], self._model), self._states)
            guesses.append(choose(self._model.head(ahead)[0, 0], place))
        restore(self._states, mark)
        return guesses


def verify(logits: Float[Tensor, "T V"], guesses: list[int], choose: Choose) -> list[int]:
    """The tokens to keep: guesses as far as they are what is drawn, then the first that is not guessed.

    Args:
        logits: of the places of all guesses and of the one after.
    """
    tokens: list[int] = []
    for place, row in enumerate(logits):
        tokens.append(choose(row, place))
        if place == len(guesses) or tokens[place] != guesses[place]:
            break
    return tokens
