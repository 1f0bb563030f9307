"""How a model marks thinking and tool calls in its text."""

from dataclasses import dataclass
from typing import Literal

from seqloom.core.errors import ConfigError

Channel = Literal["reasoning", "content", "tool"]
Piece = tuple[Channel, str]
"""A channel and text that came in it."""

TOOL_OPEN, TOOL_CLOSE = "<tool_call>", "</tool_call>"
THINKING_TAGS = (("<think>", "</think>"), ("[THINK]", "[/THINK]"))
"""As public models write them."""


@dataclass(frozen=True, kw_only=True)
class ChannelMarks:
    """How a model marks its channels; None where it does not.

    Raises:
        ConfigError: a tag without its partner, with white space at its ends, or a closing text without the closing tag.
    """

    think_open: str | None = None
    think_close: str | None = None
    tool_open: str | None = None
    tool_close: str | None = None
    starts_thinking: bool = False
    """The prompt ends inside thinking."""
    forced_close: str | None = None
    """What is written when the budget is used up; it holds `think_close`. None writes the tag alone."""

    def __post_init__(self) -> None:
        for pair in (("think_open", "think_close"), ("tool_open", "tool_close")):
            values = [getattr(self, name) for name in pair]
            if (values[0] is None) != (values[1] is None):
                raise ConfigError(f"marks.{pair[0]}, marks.{pair[1]}: {values} are not allowed; give both or none")
            for name, value in zip(pair, values, strict=True):
                if value is not None and (not value or value != value.strip()):
                    raise ConfigError(f"marks.{name}: {value!r} is not allowed; it must be a text between white space")
        if self.starts_thinking and self.think_close is None:
            raise ConfigError("marks.starts_thinking: needs think_close, which says how thinking ends")
        if self.forced_close is not None and (self.think_close is None or self.think_close not in self.forced_close):
            raise ConfigError(
                f"marks.forced_close: {self.forced_close!r} is not allowed; it must hold {self.think_close!r}"
            )

    @property
    def closing(self) -> str:
        """What is written when the budget is used up."""
        assert self.think_close is not None
        return self.forced_close or self.think_close


def marks_of(template: str, prompt: str, *, tools: bool) -> ChannelMarks:
    """The marks of the model of a chat template, for a prompt that was rendered with it.

    Args:
        template: its source.
        tools: whether the request has any; text that looks like a call is content without them.
    """
    opening, closing = next((pair for pair in THINKING_TAGS if pair[1] in template), (None, None))
    has_calls = tools and TOOL_OPEN in template
    return ChannelMarks(
        think_open=opening,
        think_close=closing,
        tool_open=TOOL_OPEN if has_calls else None,
        tool_close=TOOL_CLOSE if has_calls else None,
        starts_thinking=opening is not None and prompt.rstrip().endswith(opening),
    )
