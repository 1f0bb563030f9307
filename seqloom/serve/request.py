"""One prompt on its way to an answer: what was drawn, what may be shown, and whether it is finished."""

from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float
from torch import Tensor

from seqloom.serve.config import Sampling
from seqloom.serve.contract import Tokenizer
from seqloom.serve.drafting import MtpDrafter
from seqloom.serve.sampling import Sampler
from seqloom.serve.text import Detokenizer, StopStrings

FinishReason = Literal["stop", "length", "eos"]


@dataclass(frozen=True)
class Completion:
    """The answer to one prompt."""

    text: str
    """Without the stop string, the prompt, and a character that was cut off by the length."""
    token_ids: list[int]
    """Every token drawn, the end-of-text token included."""
    finish_reason: FinishReason
    """A stop string was complete, `max_tokens` were drawn, or the model ended the text."""
    prompt_tokens: int
    drafted_tokens: int
    """Tokens guessed ahead."""
    accepted_tokens: int
    """Guesses that were right; divided by `drafted_tokens` this is the acceptance rate."""


class Request:
    """A prompt and the answer so far."""

    def __init__(self, prompt: list[int], sampling: Sampling, tokenizer: Tokenizer) -> None:
        assert prompt
        self.prompt = prompt
        self.unseen = prompt[-1:]
        """The last tokens, which the model's states have not seen yet; the engine keeps this."""
        self.tokens: list[int] = []
        self.finish_reason: FinishReason | None = None
        self.drafter: MtpDrafter | None = None
        self._drafted = self._accepted = 0
        self._max_tokens = sampling.max_tokens
        self._eos = tokenizer.eos
        self._sampler = Sampler(sampling)
        self._detokenizer = Detokenizer(tokenizer, prompt)
        self._stop = StopStrings(sampling.stop)
        self._pieces: list[str] = []

    @property
    def remaining(self) -> int:
        """Tokens that may still be drawn."""
        return self._max_tokens - len(self.tokens)

    def guess(self, most: int) -> list[int]:
        """Guess tokens after the newest, no more than could be used; none without a drafter."""
        if self.drafter is None:
            return []
        guesses = self.drafter.propose(min(most, self.remaining - 1), self.choose)
        self._drafted += len(guesses)
        return guesses

    def choose(self, logits: Float[Tensor, "V"], ahead: int) -> int:
        """Draw the token `ahead` places after the next."""
        return self._sampler.draw(logits, len(self.tokens) + ahead)

    def take(self, tokens: list[int]) -> str:
        """Add tokens to the answer up to its end; returns the text that can be shown now."""
        piece = ""
        for place, token in enumerate(tokens):
            self.tokens.append(token)
            self._accepted += place < len(tokens) - 1
            if token != self._eos:
                piece += self._stop.push(self._detokenizer.push(token))
            self.finish_reason = self._reason_to_finish()
            if self.finish_reason is not None:
                piece += self._stop.push(self._detokenizer.flush()) + self._stop.flush()
                break
        self._pieces.append(piece)
        return piece

    def completion(self) -> Completion:
        """The finished answer."""
        assert self.finish_reason is not None
        return Completion(
            text="".join(self._pieces),
            token_ids=self.tokens,
            finish_reason=self.finish_reason,
            prompt_tokens=len(self.prompt),
            drafted_tokens=self._drafted,
            accepted_tokens=self._accepted,
        )

    def _reason_to_finish(self) -> FinishReason | None:
        if self._stop.stopped:
            return "stop"
        if self.tokens[-1] == self._eos:
            return "eos"
        return "length" if self.remaining == 0 else None
