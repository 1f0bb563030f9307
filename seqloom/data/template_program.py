"""A compiled chat template, and a conversation on its way through it."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from decimal import Decimal
from functools import cached_property
from typing import Any

from seqloom.core.errors import DataError
from seqloom.data import template_process
from seqloom.data.messages import MARKS, PROBE
from seqloom.data.template_syntax import END, START, read_template

MAX_SOURCE = 128 << 10
"""Characters of a template; the longest published ones have about 30,000."""
THINKING = ("enable_thinking", "thinking")
"""Options by which templates let an answer begin with or without thoughts."""

Span = tuple[int, int]
Message = dict[str, Any]


class Program:
    """A template, and the special tokens that it writes."""

    def __init__(self, source: str, names: Mapping[str, str]) -> None:
        if len(source) > MAX_SOURCE:
            raise DataError(f"the chat template has {len(source):,} characters; at most {MAX_SOURCE:,} are allowed")
        self.source = source
        self._reading = read_template(source)
        self._key = hashlib.sha256(self._reading.source.encode("utf-8", "surrogatepass")).hexdigest()
        self.names = dict(names)
        self.reads = self._reading.reads
        """Variables that it expects from outside."""
        self.marks_answers = self._reading.marks_answers
        """It says itself, by generation blocks, what an assistant wrote."""
        self._ask({"source": self._reading.source})

    def render(self, variables: Mapping[str, Any]) -> str:
        """The text; variables are JSON, and those that `transformers` always gives are there unless given here."""
        always = {"tools": None, "documents": None, "add_generation_prompt": False, START: "", END: "", **self.names}
        request = {"variables": always | dict(variables), "now": datetime.now().isoformat()}
        reply = self._ask(request)
        if "unknown" in reply:
            self._ask({"source": self._reading.source})
            reply = self._ask(request)
        return str(reply["text"])

    @cached_property
    def stop_mark(self) -> str | None:
        """What stands right after an answer, up to white space; None if that cannot be found out."""
        messages = [{"role": "user", "content": "?"}, {"role": "assistant", "content": PROBE}]
        try:
            parts = self.render({"messages": messages}).split(PROBE)
        except DataError:
            return None
        return "".join(parts[1].split()[:1]) if len(parts) == 2 else None

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        try:
            reply = template_process.ask({"key": self._key, **request})
        except DataError as error:
            raise DataError(f"the chat template cannot be rendered: {error}") from None
        if "raised" in reply:
            raise DataError(f"the chat template refuses this conversation: {reply['raised']}")
        if "failed" in reply:
            line = f"line {reply['line'] - self._reading.extra_lines}: " if reply["line"] else ""
            raise DataError(f"the chat template cannot be rendered: {line}{reply['failed']}")
        return reply


@dataclass(frozen=True)
class Conversation:
    """Messages, and all else that a template is given with them."""

    program: Program
    messages: Sequence[Message]
    variables: Mapping[str, Any]
    odd_numbers: Sequence[float] = ()
    """Numbers that Python writes with an exponent and the engine without."""
    _texts: dict[Any, str | None] = field(default_factory=dict)

    def upto(self, count: int) -> "Conversation":
        """The first messages alone; what was rendered of them is known already."""
        return replace(self, messages=self.messages[:count])

    def render(self, variables: Mapping[str, Any] | None = None, *, messages: Sequence[Message] | None = None) -> str:
        """The text of these messages, or of other ones, with some variables changed.

        Raises:
            DataError: the template refuses them, or what it gives is not what jinja2 would give.
        """
        given = self.messages if messages is None else messages
        text = self.program.render({**self.variables, **(variables or {}), "messages": given})
        for number in self.odd_numbers:
            written = _without_exponent(number)
            if written in text:
                if written in json.dumps([self.variables, self.messages, self.program.source]):
                    raise DataError(f"the number {number!r} and the digits {written} cannot be told apart")
                text = text.replace(written, repr(number))
        return text

    def text(self) -> str | None:
        """The text, or None if the template refuses it."""
        return self._known({})

    def prompts(self) -> Iterator[str]:
        """The text with the beginning of an answer, as asked for and with thinking switched the other way."""
        switches = [name for name in THINKING if name in self.program.reads]
        changes: list[dict[str, Any]] = [{}, *({name: not self.variables.get(name, True)} for name in switches)]
        for variables in changes:
            text = self._known({"add_generation_prompt": True, **variables})
            if text is not None:
                yield text

    def marked(self) -> tuple[str, list[Span]]:
        """The text and what stands in generation blocks.

        Raises:
            DataError: as `render`, and the template does more with the blocks than write them.
        """
        text = self.render()
        start, end = MARKS
        spans: list[Span] = []
        bare = ""
        for number, piece in enumerate(self.render({START: start, END: end}).split(start)):
            inside, mark, after = piece.partition(end)
            if bool(number) != bool(mark) or end in after:
                raise DataError("the chat template has generation blocks inside of one another")
            if mark:
                spans.append((len(bare), len(bare) + len(inside)))
            bare += inside + after
        if bare != text:
            raise DataError("the chat template changes what it wrote in generation blocks")
        return text, [(first, last) for first, last in spans if first < last]

    def _known(self, variables: Mapping[str, Any]) -> str | None:
        key = (len(self.messages), *variables.items())
        if key not in self._texts:
            try:
                self._texts[key] = self.render(variables)
            except DataError:
                self._texts[key] = None
        return self._texts[key]


def _without_exponent(number: float) -> str:
    digits = format(Decimal(repr(number)), "f")
    return digits if "." in digits else f"{digits}.0"
