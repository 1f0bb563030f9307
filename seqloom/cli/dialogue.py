"""From the messages of a conversation to what the engine is asked, the same way as the server.

Whether an answer begins with thoughts is the template's option `enable_thinking`, where it has one: a budget of 0
leaves them away. How thoughts are marked is read from the template.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from seqloom.core.errors import DataError
from seqloom.serve.config import Sampling

if TYPE_CHECKING:
    from seqloom.data.tokenizer import TextTokenizer
    from seqloom.serve.channels import ChannelMarks

_NO_OPTIONS: Mapping[str, Any] = {}


@dataclass(frozen=True)
class Asked:
    """One request to the engine: a text to go on with, or token ids as they are; None marks nothing in the answer."""

    prompt: str | list[int]
    sampling: Sampling
    marks: "ChannelMarks | None" = None


def ask_messages(
    tokenizer: "TextTokenizer",
    messages: Sequence[Mapping[str, Any]],
    sampling: Sampling,
    options: Mapping[str, Any] = _NO_OPTIONS,
) -> Asked:
    """Answer a conversation; the answer ends where the template ends a turn.

    Args:
        options: of the template.
    Raises:
        DataError: there is no chat template, or it cannot render this.
    """
    from seqloom.serve.marks import marks_of

    template, budget = tokenizer.template, sampling.thinking_tokens
    if template is None:
        raise DataError("messages need a chat template, and this model has none")
    if "enable_thinking" in template.options:
        options = {"enable_thinking": budget != 0, **options}
    text = template.render(messages, add_generation_prompt=True, options=options)
    marks = marks_of(template.source, text, tools=False)
    ends = (*sampling.stop_token_ids, tokenizer.answer_end)
    sampling = replace(sampling, stop_token_ids=ends, thinking_tokens=budget if marks.think_close else None)
    return Asked(tokenizer.encode(text, specials=True), sampling, marks)
