"""One prompt on its way to an answer: what was drawn, what may be shown, and whether it is finished."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from jaxtyping import Float
from torch import Tensor

from seqloom.core.errors import NumericsError, SeqloomError
from seqloom.ops.token_draw import Race
from seqloom.serve.channels import Channel, Piece
from seqloom.serve.choosing import Choice, Chooser
from seqloom.serve.config import Sampling
from seqloom.serve.prefix import PageKeys
from seqloom.serve.sampling import logprobs, most_likely, on_cpu

FinishReason = Literal["stop", "length", "eos", "cancelled", "error"]

_SCORED = 64
"""Places of a prompt whose logits are held at once."""


@dataclass(frozen=True, kw_only=True)
class Usage:
    """Tokens of one request, counted."""

    prompt_tokens: int
    cached_tokens: int
    """Of the prompt, those that an earlier request had left behind."""
    completion_tokens: int
    reasoning_tokens: int
    forced_tokens: int
    """Written to close the thinking; the model did not choose them."""
    drafted_tokens: int
    """Guessed ahead."""
    accepted_tokens: int
    """Guesses that were right; divided by `drafted_tokens` this is the acceptance rate."""


class Scored(NamedTuple):
    """What the model says of a token of the prompt: its log-probability, and the most likely tokens with theirs."""

    logprob: float | None
    top: list[tuple[int, float]]


@dataclass(frozen=True)
class Completion:
    """The answer to one prompt."""

    text: str
    """Without the stop string, the prompt, thinking, and a character that was cut off by the length."""
    token_ids: list[int]
    """Every token drawn, the end-of-text token included."""
    finish_reason: FinishReason
    """A stop string was complete, `max_tokens` were drawn, the model ended the text, or somebody else did."""
    prompt_tokens: int
    drafted_tokens: int
    """Tokens guessed ahead."""
    accepted_tokens: int
    """Guesses that were right; divided by `drafted_tokens` this is the acceptance rate."""
    reasoning: str = ""
    """The thinking before the answer."""
    tool_calls: str = ""
    """The text of tool calls, their tags included."""
    logprobs: list[Choice] | None = None
    """If asked for: what each token's log-probability was, and which others were likely."""
    prompt_logprobs: list[Scored] | None = None
    """If asked for: the same of the tokens of the prompt."""
    cached_tokens: int = field(default=0, compare=False)
    """Tokens of the prompt that an earlier request had left behind."""
    forced_tokens: int = 0
    """Tokens written to close the thinking."""


@dataclass
class Fresh:
    """What a turn has added to an answer."""

    pieces: list[Piece] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[Choice] | None = None
    prompt_logprobs: list[Scored] | None = None


class Request:
    """A prompt and the answer so far.

    Args:
        chooser: of its tokens, from whose settings and prompt it was made.
        number: requests that came earlier have smaller ones.
        most: tokens that the prompt and its answer can have together.
        draft_tokens: tokens to guess in a step; None has the engine choose.
    """

    def __init__(
        self, prompt: list[int], sampling: Sampling, chooser: Chooser, number: int, most: int, draft_tokens: int | None
    ) -> None:
        assert prompt
        self.sampling, self.number, self.draft_tokens = sampling, number, draft_tokens
        self.ids = list(prompt)
        """The prompt and the tokens drawn so far."""
        self.finish_reason: FinishReason | None = None
        self.failure: SeqloomError | None = None
        self.fresh = Fresh()
        self.keys = PageKeys()
        self.answer_key: bytes | None = None
        """Of the newest prefix that was remembered while answering."""
        self.followed: Any = None
        """What the drafter keeps of this request; None before it has followed it, and once its row is lost."""
        self.rests = False
        """Whether guesses were given up, of a request that leaves their number open."""
        self.newest: Float[Tensor, "D"] | None = None
        """Hidden state of the last token of a revived prefix, which the prediction block has yet to follow."""
        self.cached_tokens: int | None = None
        self._scores = None if sampling.prompt_logprobs is None else [Scored(None, [])]
        self.drafted = self.accepted = self._forced = 0
        self.prompt_tokens = len(prompt)
        self._last = min(len(prompt) + sampling.max_tokens, most)
        self._chooser = chooser
        self._pieces: list[Piece] = []
        self._choices: list[Choice] | None = None if sampling.logprobs is None else []

    @property
    def tokens(self) -> list[int]:
        """Drawn so far."""
        return self.ids[self.prompt_tokens :]

    @property
    def drafts(self) -> bool:
        return self.draft_tokens != 0

    @property
    def scoring(self) -> bool:
        """Whether tokens of the prompt have yet to get the log-probabilities that were asked for."""
        return self._scores is not None and len(self._scores) < self.prompt_tokens

    @property
    def remaining(self) -> int:
        """Tokens that may still be drawn."""
        return self._last - len(self.ids)

    @property
    def error(self) -> str | None:
        """What went wrong, if something did."""
        return None if self.failure is None else str(self.failure)

    @property
    def plain(self) -> bool:
        """Whether its next tokens depend on logits, filters and seed alone, so that they may be chosen elsewhere."""
        return self._chooser.plain

    @property
    def forced(self) -> bool:
        """Whether its next tokens are set already."""
        return bool(self._chooser.channels.forced)

    @property
    def rule(self) -> Race | None:
        """How its next tokens are drawn, if it is plain."""
        return self._chooser.rule

    def race(self, ahead: int) -> int:
        """The key of the draw for so many places after the next."""
        return self._chooser.key(ahead)

    def guess(self, logits: Float[Tensor, "V"], ahead: int) -> int:
        """A guess at the token `ahead` places after the next, which changes nothing."""
        return self._chooser.guess(logits, ahead)

    def draw(self, places: Sequence[Float[Tensor, "V"] | int], guesses: list[int] | None = None) -> int:
        """Draw tokens as long as they are what was guessed, then the first that was not, and no more than the end.

        Args:
            places: of all guesses and of the one after, the logits or the token that was chosen elsewhere (`Decoded`).
            guesses: None where every place was fed what was chosen before it.
        Returns:
            the number of tokens fed that turned out to belong to the text, the newest one included.
        """
        before = len(self.ids)
        if before == self.prompt_tokens:  # once, however often the prompt had to be read
            self.fresh.prompt_logprobs = self._scores
        try:
            for place, found in enumerate(places):
                self._take(self._choice(found))
                if self.finish_reason:
                    break
                if guesses is not None and (place == len(guesses) or self.ids[-1] != guesses[place]):
                    break
        except SeqloomError as error:
            self._fail(error)
        drawn = len(self.ids) - before
        if guesses:
            self.drafted += len(guesses)
            self.accepted += max(0, drawn - 1)
        return max(1, drawn)

    def score(
        self,
        hidden: Float[Tensor, "T D"],
        start: int,
        head: Callable[[Float[Tensor, "1 T D"]], Float[Tensor, "1 T V"]],
    ) -> None:
        """Take in what the hidden states of the prompt, from a place on, say of the tokens after them."""
        scores, count = self._scores, self.sampling.prompt_logprobs
        assert scores is not None
        assert count is not None
        try:
            for piece in range(0, len(hidden), _SCORED):
                for place, logits in enumerate(head(hidden[None, piece : piece + _SCORED])[0], start + piece + 1):
                    if place == len(scores) < self.prompt_tokens:  # else it was read before
                        raw = on_cpu(logits)
                        likeliest = most_likely(raw, f"token {place} of the prompt")
                        scores.append(Scored(*logprobs(raw, likeliest, self.ids[place], count)))
        except NumericsError as error:
            self._fail(error)

    def finish(self, reason: FinishReason) -> None:
        """End the answer, whatever may still come."""
        self.finish_reason = reason
        self._show(self._chooser.flush())

    def pieces(self, first: int = 0) -> list[Piece]:
        """All pieces of text from one on."""
        return self._pieces[first:]

    @property
    def usage(self) -> Usage:
        return Usage(
            prompt_tokens=self.prompt_tokens,
            cached_tokens=self.cached_tokens or 0,
            completion_tokens=len(self.ids) - self.prompt_tokens,
            reasoning_tokens=self._chooser.channels.thinking,
            forced_tokens=self._forced,
            drafted_tokens=self.drafted,
            accepted_tokens=self.accepted,
        )

    def completion(self) -> Completion:
        """The finished answer."""
        assert self.finish_reason is not None

        def text(wanted: Channel) -> str:
            return "".join(text for channel, text in self._pieces if channel == wanted)

        usage = self.usage
        return Completion(
            text=text("content"),
            token_ids=self.tokens,
            finish_reason=self.finish_reason,
            prompt_tokens=usage.prompt_tokens,
            drafted_tokens=usage.drafted_tokens,
            accepted_tokens=usage.accepted_tokens,
            reasoning=text("reasoning"),
            tool_calls=text("tool"),
            logprobs=self._choices,
            prompt_logprobs=self._scores,
            cached_tokens=usage.cached_tokens,
            forced_tokens=usage.forced_tokens,
        )

    def _fail(self, error: SeqloomError) -> None:
        self.failure = error
        self.finish("error")

    def _choice(self, place: Float[Tensor, "V"] | int) -> Choice:
        if not isinstance(place, int):
            return self._chooser.choose(place)
        if place < 0:
            raise NumericsError(
                f"token {len(self.ids) - self.prompt_tokens} of the answer: the model's logits are not finite"
            )
        return self._chooser.take(place)

    def _take(self, choice: Choice) -> None:
        """Add a token to the answer."""
        self.ids.append(choice.token)
        self.fresh.token_ids.append(choice.token)
        if self._choices is not None:
            self._choices.append(choice)
            self.fresh.logprobs = [*(self.fresh.logprobs or []), choice]
        self._forced += choice.forced
        self._show(choice.pieces)
        self.finish_reason = choice.ends or ("length" if self.remaining == 0 else None)
        if self.finish_reason is not None:
            self.finish(self.finish_reason)

    def _show(self, pieces: list[Piece]) -> None:
        self._pieces += pieces
        self.fresh.pieces += pieces
