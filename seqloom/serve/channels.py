"""Thinking, tool calls and content in one stream of tokens, and a budget for the thinking.

    START   nothing but white space so far: the model may open thinking itself
    THINK   tag that closes it -> ANSWER · tag that opens a tool call -> TOOL
            as many tokens as the budget, and a sentence or line ends -> FORCE
            as many as budget and grace -> FORCE
    FORCE   the closing text, token by token -> ANSWER
    TOOL    tag that closes the call -> ANSWER; the budget never acts here
    ANSWER  content; a tool call may open, thinking may not

Tags are found in the text, so it does not matter into which tokens they are cut; a tag that is a token of its own is
text like any other. A piece of text is shown as soon as it can no longer be the beginning of a tag.
Paper: Nemotron Nano 2, budget control; Nemotron 3 white paper.
"""

import re
from collections.abc import Sequence
from typing import Literal, Protocol

from seqloom.serve.marks import Channel as Channel  # "as" marks names that are meant to be imported from here
from seqloom.serve.marks import ChannelMarks as ChannelMarks
from seqloom.serve.marks import Piece as Piece
from seqloom.serve.marks import marks_of as marks_of
from seqloom.serve.splitter import Splitter
from seqloom.serve.text import Detokenizer

_SENTENCE_END = re.compile(r"""(?:[.!?…。！？]["'”’»)\]*_`]*|\n)\s*\Z""")
_TAIL = 32
"""Characters of the text that are kept, to see whether they end a sentence or begin a tag."""


class MarkTokenizer(Protocol):
    """A tokenizer that can read the spelling of a special token as that token."""

    def encode(self, text: str, *, specials: bool = ...) -> list[int]: ...

    def decode(self, ids: Sequence[int]) -> str: ...


class Channels:
    """The channels of one answer, token by token.

    Args:
        before: the tokens of the prompt.
        thinking_tokens: the budget; None has no limit.
    """

    def __init__(
        self,
        tokenizer: MarkTokenizer,
        before: Sequence[int],
        marks: ChannelMarks | None = None,
        thinking_tokens: int | None = None,
    ) -> None:
        self.marks = marks = marks or ChannelMarks()
        self._tokenizer, self._budget = tokenizer, thinking_tokens
        self._detokenizer = Detokenizer(tokenizer, before)
        tags = [tag for tag in (marks.think_open, marks.think_close, marks.tool_open, marks.tool_close) if tag]
        spelled = {tag: tokenizer.encode(tag, specials=True) for tag in tags}
        self.tag_ids = {tag: ids[0] for tag, ids in spelled.items() if len(ids) == 1}
        """The tags that are tokens of their own."""
        self._tag_texts = {index: tag for tag, index in self.tag_ids.items()}
        self._splitter = Splitter(marks, "reasoning" if marks.starts_thinking else self._beginning(before))
        self._queue: list[int] = []
        self._tail = ""
        self.thinking = 0
        """Tokens of thinking so far, those that were forced included."""
        self.closed_by_budget = False
        self._watch_budget()

    @property
    def channel(self) -> Channel:
        """Where the next token belongs."""
        return self._splitter.channel

    @property
    def forced(self) -> list[int]:
        """The next tokens, as far as there is no choice."""
        return self._queue

    @property
    def may_open(self) -> bool:
        """Whether the next token may open thinking."""
        return self._splitter.may_open and self._budget != 0

    @property
    def answering(self) -> bool:
        """Whether thinking is over for good."""
        return self.channel != "reasoning" and not self.may_open

    @property
    def tail(self) -> str:
        """The end of the text so far."""
        return self._tail

    def push(self, token: int) -> list[Piece]:
        """The pieces of text that became certain with this token."""
        if self.channel == "reasoning" or self._queue:
            self.thinking += 1
        if self._queue:
            assert token == self._queue[0]
            del self._queue[0]
        tag = self._tag_texts.get(token)
        text = self._detokenizer.push(token) if tag is None else self._detokenizer.settle() + tag
        self._tail = (self._tail + text)[-_TAIL:]
        pieces = self._splitter.push(text)
        self._watch_budget()
        return pieces

    def flush(self) -> list[Piece]:
        """The text still waiting, once no more tokens can follow."""
        return self._splitter.push(self._detokenizer.flush()) + self._splitter.flush()

    def _beginning(self, before: Sequence[int]) -> Literal["start", "content"]:
        """Where an answer begins that does not begin in thinking: after a closed block of thinking none may open."""
        ids = list(before[-_TAIL:])
        text = "".join(self._tag_texts.get(index) or self._tokenizer.decode([index]) for index in ids)
        close = self.marks.think_close
        return "content" if close is not None and text.rstrip().endswith(close) else "start"

    def _watch_budget(self) -> None:
        if self._budget is None or self.closed_by_budget or self.channel != "reasoning":
            return
        over = self.thinking - self._budget
        grace = min(500, max(16, self._budget // 10)) if self._budget else 0
        if over < 0 or (over < grace and not self._at_sentence_end()) or (over >= 0 and self._inside(over - grace)):
            return
        closing, tag, held = self.marks.closing, self.marks.think_close, self._splitter.held
        assert tag is not None
        if held and tag.startswith(held):  # the model has begun to close by itself
            closing = closing[closing.index(tag) + len(held) :]
        self._queue = self._tokenizer.encode(closing, specials=True)
        self.closed_by_budget = True

    def _at_sentence_end(self) -> bool:
        return _SENTENCE_END.search(self._tail) is not None

    def _inside(self, late: int) -> bool:
        """Whether a tool call's tag may have begun; that is waited for while it can still be true."""
        held, tag, close = self._splitter.held, self.marks.tool_open, self.marks.think_close
        assert close is not None
        return bool(held) and tag is not None and not close.startswith(held) and late < len(tag)
