"""Text cut into thinking, tool calls and content, by its tags alone."""

from typing import Literal

from seqloom.serve.marks import Channel, ChannelMarks, Piece
from seqloom.serve.text import overlap


class Splitter:
    """Cuts a text into channels; the pieces do not depend on how the text arrives.

    The tags of thinking are left out. Those of a tool call belong to its text, since that begins and ends with them.
    """

    def __init__(self, marks: ChannelMarks, state: Literal["start", "reasoning", "content"]) -> None:
        self._marks = marks
        tags = {
            "start": (marks.think_open, marks.tool_open),
            "reasoning": (marks.think_close, marks.tool_open),
            "tool": (marks.tool_close,),
            "content": (marks.tool_open,),
        }
        self._tags = {state: [tag for tag in ends if tag is not None] for state, ends in tags.items()}
        """What ends each state."""
        self._state: Literal["start", "reasoning", "content", "tool"] = state
        self.held = ""
        """Text that may become a tag."""

    @property
    def channel(self) -> Channel:
        """Where the next text belongs."""
        return "content" if self._state == "start" else self._state

    @property
    def may_open(self) -> bool:
        """Whether a tag would open thinking here."""
        return self._state == "start" and self._marks.think_open is not None

    def push(self, text: str) -> list[Piece]:
        """The pieces that became certain with this text."""
        pieces: list[Piece] = []
        self.held += text
        while self._advance(pieces):
            pass
        return pieces

    def flush(self) -> list[Piece]:
        """The text held back, once no more can follow."""
        pieces: list[Piece] = []
        self._show(pieces, len(self.held))
        return pieces

    def _show(self, pieces: list[Piece], length: int) -> None:
        """Move the first characters held to the pieces."""
        if length:
            pieces.append((self.channel, self.held[:length]))
            self.held = self.held[length:]

    def _advance(self, pieces: list[Piece]) -> bool:
        """Take in the text held up to the next tag; whether there was one."""
        if self._state == "start":
            self._show(pieces, len(self.held) - len(self.held.lstrip()))
            opening = self._marks.think_open
            if opening is None or not (self.held.startswith(opening) or opening.startswith(self.held)):
                self._state = "content"
        tags = self._tags[self._state]
        found = min(((at + len(tag), at, tag) for tag in tags if (at := self.held.find(tag)) >= 0), default=None)
        if found is None:
            self._show(pieces, len(self.held) - max((overlap(self.held, tag) for tag in tags), default=0))
            return False
        end, at, tag = found
        if tag == self._marks.tool_open:
            self._show(pieces, at)
            self._state = "tool"
            self._show(pieces, len(tag))
        elif self._state == "tool":
            self._show(pieces, end)
            self._state = "content"
        else:
            self._show(pieces, at)
            self._state = "reasoning" if self._state == "start" else "content"
            self.held = self.held[len(tag) :]
        return True
