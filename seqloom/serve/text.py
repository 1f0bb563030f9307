"""Tokens to text while they arrive: what was shown is never taken back.

A character may be spread over several tokens, and a token may hold the end of one character and the beginning of the
next. Bytes that are no character decode to U+FFFD, so a text that ends in U+FFFD may be waiting for the rest of one; a
character has at most four bytes, so what is still broken after three tokens is broken for good. Likewise a text whose
end is the beginning of a stop string is held until it is clear what it becomes.
"""

from collections.abc import Sequence
from typing import Protocol

_BROKEN = "\ufffd"
_WAITING_TOKENS = 3
_CONTEXT_TOKENS = 32


class Decoder(Protocol):
    """What turns tokens into text."""

    def decode(self, ids: Sequence[int]) -> str: ...


class Detokenizer:
    """Decodes one token at a time; the pieces joined are the text of all tokens.

    Each piece is cut from the decoding of the last tokens that were shown and of those that were not, because a
    token's text may depend on the one before it: some tokenizers leave out the space of a token at the beginning.
    """

    def __init__(self, tokenizer: Decoder, before: Sequence[int]) -> None:
        """
        Args:
            before: the tokens that the text continues; their own text is not shown, and only the last ones matter.
        """
        self._decode = tokenizer.decode
        self._lengths: dict[int, int] = {}
        self._ids = list(before[-_CONTEXT_TOKENS:])
        self._settled = len(self._ids)
        text = self._decode(self._ids)
        self._shown = len(text) - text.endswith(_BROKEN)

    def push(self, token: int) -> str:
        """The text that became certain with this token; often one token's, sometimes none or several."""
        self._ids.append(token)
        text = self._decode(self._ids)
        waiting = text.endswith(_BROKEN)
        if waiting and len(self._ids) - self._settled <= _WAITING_TOKENS:
            return ""
        new = text[self._shown : len(text) - waiting]
        if waiting:
            # Broken for good but for the last character; some tokens of context keep the cut inside broken text.
            self._ids, self._settled = self._ids[-2 * _WAITING_TOKENS :], 0
        elif new:
            self._ids = self._ids[self._settled :]
            self._settled = len(self._ids)
        else:  # a token without text, which as context would pass for the beginning of a text
            self._ids.pop()
        self._shown = self._length() - waiting
        return new

    def flush(self) -> str:
        """The text still waiting, without the part of a character that it may end in."""
        return self._decode(self._ids)[self._shown :].rstrip(_BROKEN)

    def settle(self) -> str:
        """The text still waiting; what comes next does not belong to its last character."""
        text = self.flush()
        self._ids = self._ids[: self._settled]
        self._shown = len(self._decode(self._ids))
        return text

    def _length(self) -> int:
        """Of the text of the tokens kept; mostly it is one token, whose text is decoded once."""
        if len(self._ids) != 1:
            return len(self._decode(self._ids))
        (token,) = self._ids
        if token not in self._lengths:
            self._lengths[token] = len(self._decode(self._ids))
        return self._lengths[token]


class StopStrings:
    """Lets text through until a stop string is complete, wherever the pieces are cut.

    Of several stop strings the one that is complete first ends the text, so the result does not depend on the pieces.
    """

    def __init__(self, stop: tuple[str, ...]) -> None:
        self._stop = stop
        self._held = ""
        self.stopped = False

    def push(self, text: str) -> str:
        """The text that can no longer be part of a stop string; nothing once one was seen."""
        if self.stopped:
            return ""
        if not self._stop:
            return text
        self._held += text
        found = [(start + len(stop), start) for stop in self._stop if (start := self._held.find(stop)) >= 0]
        if found:
            self.stopped = True
            return self._held[: min(found)[1]]
        unsure = max((overlap(self._held, stop) for stop in self._stop), default=0)
        clear = len(self._held) - unsure
        certain, self._held = self._held[:clear], self._held[clear:]
        return certain

    def flush(self) -> str:
        """The text held back, once no more can follow that belongs to it."""
        certain, self._held = "" if self.stopped else self._held, ""
        return certain


def overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that is a beginning of `stop`."""
    tail = text[max(0, len(text) - len(stop) + 1) :]
    while tail and not stop.startswith(tail):
        begin = tail.find(stop[0], 1)
        tail = tail[begin:] if begin > 0 else ""
    return len(tail)
