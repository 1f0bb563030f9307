"""Requests that are ready for the engine."""

from dataclasses import dataclass, field
from typing import Any

from seqloom.serve.http.answers import Choice
from seqloom.serve.tool_calls import Form, ToolCallParser


@dataclass(frozen=True, kw_only=True)
class Defaults:
    """What holds where a request does not say."""

    draft_tokens: int | str
    answer_tokens: int
    thinking_tokens: int | None


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A request: one engine request for each choice, and what it takes to read the answers."""

    requests: list[dict[str, Any]]
    tools: list[dict[str, Any]] = field(default_factory=list)
    """Those whose calls are to be told from text."""
    form: Form | None = None
    """How the model writes a call, if it can."""
    one_call: bool = False
    """The answer ends with its first call of a tool."""

    def choices(self) -> list[Choice]:
        """What the answers are read into."""
        return [
            Choice(ToolCallParser(self.form, self.tools) if self.form and self.tools else None, one_call=self.one_call)
            for _ in self.requests
        ]
