"""From logits to tokens and their meaning, for one request.

    forced     a token that the thinking budget writes is taken as it is
    penalties  repetition over prompt and answer; frequency and presence over the answer
    bias       the request's own
    mask       tokens that the grammar allows
    bans       no end before `min_tokens`, no second opening of thinking
    draw       temperature, top-k, top-p, min-p and noise (`sampling`)

A token that was chosen is final, whether it had been guessed or not, so all of this state goes forward token by token
and is never taken back. Log-probabilities are those of the raw logits: what the model itself says.
"""

import secrets
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float32, Int64
from torch import Tensor

from seqloom.core.errors import ConfigError
from seqloom.ops.token_draw import Race
from seqloom.serve.channels import Channel, ChannelMarks, Channels, Piece
from seqloom.serve.config import Sampling
from seqloom.serve.constraints import Grammars, Matcher
from seqloom.serve.penalties import Penalties
from seqloom.serve.sampling import draw, logprobs, most_likely, on_cpu, race_key, race_of
from seqloom.serve.text import StopStrings
from seqloom.serve.vocabulary import Vocabulary


class Choice(NamedTuple):
    """A token of the answer.

    Attributes:
        logprob: under the raw model; None if not asked for, or if the token was forced and the model had no say.
        top: the most likely tokens and their log-probabilities.
        forced: written by the thinking budget; not to be counted as the model's own.
        pieces: the text that can be shown now.
        ends: why the answer is finished; None if it goes on.
    """

    token: int
    logprob: float | None
    top: list[tuple[int, float]]
    forced: bool
    pieces: list[Piece]
    ends: Literal["stop", "eos"] | None


class Chooser:
    """Chooses the tokens of one request.

    Args:
        vocabulary: of the model; one for all requests.
        prompt: the tokens that the answer continues.
        marks: how the model marks thinking and tool calls; None takes all text as content.
        grammars: one for all requests; needed for those that have a grammar.
    Raises:
        ConfigError: a setting does not fit the model, or the grammar cannot be used.
    """

    def __init__(
        self,
        sampling: Sampling,
        vocabulary: Vocabulary,
        prompt: Sequence[int],
        marks: ChannelMarks | None = None,
        grammars: Grammars | None = None,
    ) -> None:
        for name, ids in (
            ("logit_bias", [index for index, _ in sampling.logit_bias]),
            ("stop_token_ids", sampling.stop_token_ids),
        ):
            if wrong := [index for index in ids if index >= vocabulary.size]:
                raise ConfigError(
                    f"sampling.{name}: {wrong[0]} is no token id; they are whole numbers up to {vocabulary.size - 1}"
                )
        self._sampling, self._vocabulary = sampling, vocabulary
        self._seed = secrets.randbits(63) if sampling.seed is None else sampling.seed
        self._place = 0
        self._eos = vocabulary.tokenizer.eos
        ends = {*sampling.stop_token_ids, self._eos}
        self._ends = np.array(sorted(ends))
        self._final = ends - {self._eos} if sampling.ignore_eos else ends
        self._penalties = Penalties.of(sampling, prompt)
        self._bias_ids = np.array([index for index, _ in sampling.logit_bias], dtype=np.int64)
        self._bias = np.array([bias for _, bias in sampling.logit_bias], dtype=np.float32)
        self.channels = Channels(vocabulary.tokenizer, prompt, marks, sampling.thinking_tokens)
        self._stop = StopStrings(sampling.stop)
        self._matcher: Matcher | None = None
        if sampling.grammar is not None:
            assert grammars is not None
            self._matcher = grammars.matcher(sampling.grammar, self._ends.tolist())
        self._unchanged = (
            self._penalties is None
            and self._matcher is None
            and sampling.logprobs is None
            and not sampling.logit_bias
            and self.channels.marks == ChannelMarks()
        )
        self._rule = race_of(sampling)
        self._free = False  # in a tool call that the grammar does not describe
        self._instead: list[int] = []

    @property
    def channel(self) -> Channel:
        """Where the next token belongs."""
        return self.channels.channel

    @property
    def plain(self) -> bool:
        """Whether nothing but raw logits, temperature, filters and seed has a say in the next tokens."""
        return self._unchanged and self._place >= self._sampling.min_tokens

    @property
    def rule(self) -> Race | None:
        """How the next tokens are drawn; None where more than that has a say."""
        return self._rule if self.plain else None

    def key(self, ahead: int) -> int:
        """Of the noise for so many places after the next."""
        return race_key(self._seed, self._place + ahead)

    def take(self, token: int) -> Choice:
        """A token that was chosen elsewhere, of a request that is `plain`; everything goes forward by it."""
        ends, pieces = self._take(token)
        return Choice(token, None, [], False, pieces, ends)

    def choose(self, logits: Float[Tensor, "V"]) -> Choice:
        """The token for the next place; everything goes forward by it.

        Raises:
            NumericsError: the logits hold NaN or infinity.
            ConfigError: the grammar takes more work than is allowed.
        """
        raw = on_cpu(logits)
        likeliest = most_likely(raw, f"token {self._place} of the answer")
        forced = bool(self.channels.forced)
        if forced:
            token = self.channels.forced[0]
        else:
            allowed = self._allowed()
            token = self._draw(raw, likeliest, allowed, self._place)
            if allowed is not None:
                self._advance_grammar(token)
        logprob: float | None = None
        top: list[tuple[int, float]] = []
        if (count := self._sampling.logprobs) is not None:
            logprob, top = logprobs(raw, likeliest, token, count)
        ends, pieces = self._take(token)
        return Choice(token, None if forced else logprob, top, forced, pieces, ends)

    def guess(self, logits: Float[Tensor, "V"], ahead: int) -> int:
        """The token that a drafter proposes for so many places after the next; nothing changes by it."""
        if ahead < len(self.channels.forced):
            return self.channels.forced[ahead]
        raw = on_cpu(logits)
        return self._draw(raw, int(raw.numpy().argmax()), None, self._place + ahead)

    def flush(self) -> list[Piece]:
        """The text that was held back, once the answer is finished."""
        return self._show(self.channels.flush()) + self._rest()

    def _draw(
        self, raw: Float32[Tensor, "V"], likeliest: int, allowed: Bool[np.ndarray, "V"] | None, place: int
    ) -> int:
        banned = self._banned(place)
        if self._penalties is None and not len(self._bias_ids) and allowed is None and not banned:
            return draw(raw, likeliest, self._sampling, self._seed, place)
        changed = raw.clone()
        scores = changed.numpy()
        if self._penalties is not None:
            self._penalties.apply(scores)
        scores[self._bias_ids] += self._bias
        if allowed is not None:
            scores[~allowed] = -np.inf
        for ids in banned:
            scores[ids] = -np.inf
        likeliest = int(scores.argmax())
        if scores[likeliest] == -np.inf:  # nothing is left but to end
            return self._eos
        return draw(changed, likeliest, self._sampling, self._seed, place)

    def _banned(self, place: int) -> list[Int64[np.ndarray, "K"]]:
        """Tokens that may not come here."""
        banned: list[Int64[np.ndarray, "K"]] = []
        if place < self._sampling.min_tokens:
            banned.append(self._ends)
        marks, channels = self.channels.marks, self.channels
        if marks.think_open is not None and channels.answering:
            tag = channels.tag_ids.get(marks.think_open)
            banned.append(
                self._vocabulary.completing(marks.think_open, channels.tail) if tag is None else np.array([tag])
            )
        if self._matcher is not None:  # what comes after a tag begins with a token of its own
            ending = {"reasoning": (marks.think_close, marks.tool_open), "tool": (marks.tool_close,)}
            tags = filter(None, ending.get(channels.channel, ()))
            banned += [self._vocabulary.completing(each, channels.tail, beyond=True) for each in tags]
        return banned

    def _allowed(self) -> Bool[np.ndarray, "V"] | None:
        """What the grammar allows; None where none rules: while thinking, and in a tool call that it does not
        describe, which may take the place of its text."""
        if self._matcher is None or self._free or self.channel == "reasoning":
            return None
        allowed = self._matcher.mask()
        if not self._matcher.begun:
            self._instead = [index for index in self._openings() if not allowed[index]]
            allowed[self._instead] = True
        return allowed

    def _openings(self) -> list[int]:
        """The tags that may open another channel here, as far as they are tokens of their own."""
        marks = self.channels.marks
        tags = [marks.tool_open, marks.think_open if self.channels.may_open else None]
        return [self.channels.tag_ids[tag] for tag in tags if tag in self.channels.tag_ids]

    def _advance_grammar(self, token: int) -> None:
        assert self._matcher is not None
        if not self._matcher.begun and token in self._instead:
            self._free = token == self.channels.tag_ids.get(self.channels.marks.tool_open or "")
        else:
            self._matcher.take(token)

    def _call_while_thinking(self, matcher: Matcher) -> None:
        """Have the grammar know of the tag that opened a call, or leave the call free if it describes none."""
        tag = self.channels.marks.tool_open
        assert tag is not None
        for token in self._vocabulary.tokenizer.encode(tag, specials=True):
            if not matcher.mask()[token]:
                self._free = True
                return
            matcher.take(token)

    def _take(self, token: int) -> tuple[Literal["stop", "eos"] | None, list[Piece]]:
        self._place += 1
        if self._penalties is not None:
            self._penalties.take(token)
        if token in self._final:
            return ("eos" if token == self._eos else "stop"), []
        before = self.channel
        pieces = self._show(self.channels.push(token))
        self._free = self._free and self.channel == "tool"
        if self._matcher is not None and (before, self.channel) == ("reasoning", "tool"):
            self._call_while_thinking(self._matcher)
        return ("stop" if self._stop.stopped else None), pieces

    def _show(self, pieces: list[Piece]) -> list[Piece]:
        """Pieces without the stop string and what comes after it; only content is searched for one."""
        shown: list[Piece] = []
        for channel, text in pieces:
            if self._stop.stopped:
                break
            if channel == "content":
                shown.append((channel, self._stop.push(text)))
            else:
                shown += [*self._rest(), (channel, text)]
        return [piece for piece in shown if piece[1]]

    def _rest(self) -> list[Piece]:
        held = self._stop.flush()
        return [("content", held)] if held else []
