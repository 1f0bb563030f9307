"""Tool calls in the text of a model, read while they arrive.

Two spellings are in use, and a chat template shows which one its model learned:

    xml     <tool_call>\\n<function=NAME>\\n<parameter=KEY>\\nvalue\\n</parameter>\\n</function>\\n</tool_call>
    json    <tool_call>\\n{"name": "NAME", "arguments": {...}}\\n</tool_call>

The name is given as soon as it is known and then the arguments as pieces of one JSON object. Values in the first form
are plain text and become what the tool declares: numbers, booleans, lists and objects if they can be read as such, and
text otherwise. A call that is not well-formed, or never ends, comes back as the text that it was; if its name was given
already, its arguments stay open, so that nobody can take them for whole.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from seqloom.serve.call_forms import JsonCall, MalformedCallError, XmlCall
from seqloom.serve.call_types import Tools
from seqloom.serve.marks import TOOL_CLOSE, TOOL_OPEN
from seqloom.serve.text import overlap

Form = Literal["xml", "json"]


@dataclass(frozen=True)
class CallDelta:
    """A piece of a tool call."""

    index: int
    """Number of the call in the answer."""
    name: str | None
    """With the first piece only."""
    arguments: str
    """Joined over all pieces of a call they are one JSON object."""


def form_of(template: str) -> Form | None:
    """How the model of a chat template spells its tool calls; None if it has none that are known here."""
    if TOOL_OPEN not in template:
        return None
    return "xml" if "<function=" in template else "json"


class ToolCallParser:
    """Reads calls, tags included, from pieces of text; the result does not depend on where those are cut."""

    def __init__(self, form: Form, tools: Tools) -> None:
        self._form, self._tools = form, tools
        self._held = ""
        self._raw: list[str] = []
        self._body: XmlCall | JsonCall | None = None
        self._index = 0
        self._named = self._broken = False

    def push(self, text: str) -> list[CallDelta | str]:
        """What became certain with this text: pieces of calls, and text that belongs to none."""
        self._held += text
        out: list[CallDelta | str] = []
        while True:
            tag = TOOL_OPEN if self._body is None else TOOL_CLOSE
            at = self._held.find(tag)
            certain = at if at >= 0 else len(self._held) - overlap(self._held, tag)
            part, self._held = self._held[:certain], self._held[certain:]
            if self._body is None:
                out += [part] if part else []
            else:
                self._feed(part, out)
            if at < 0:
                return out
            self._held = self._held[len(tag) :]
            if self._body is None:
                self._body, self._raw = (XmlCall if self._form == "xml" else JsonCall)(self._tools), [tag]
                self._named = self._broken = False
            else:
                self._end(tag, out)

    def flush(self) -> list[CallDelta | str]:
        """What is left once no more text can follow."""
        rest = "".join([*self._raw, self._held])
        self._body, self._raw, self._held = None, [], ""
        return [rest] if rest else []

    def _feed(self, text: str, out: list[CallDelta | str]) -> None:
        assert self._body is not None
        self._raw.append(text)
        if not self._broken:
            try:
                self._add(self._body.push(text), out)
            except MalformedCallError:
                self._broken = True

    def _end(self, tag: str, out: list[CallDelta | str]) -> None:
        assert self._body is not None
        if not self._broken:
            try:
                self._add(self._body.end(), out)
            except MalformedCallError:
                self._broken = True
        if self._broken:
            out.append("".join([*self._raw, tag]))
        self._index += self._named
        self._body, self._raw = None, []

    def _add(self, pieces: Iterator[tuple[str | None, str]], out: list[CallDelta | str]) -> None:
        for name, arguments in pieces:
            self._named = True
            out.append(CallDelta(self._index, name, arguments))
