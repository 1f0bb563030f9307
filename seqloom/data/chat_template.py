"""From messages to the text that a chat model reads, by the template that came with the model.

Published models bring a small program that writes a conversation in their own form. `transformers` runs it with jinja2;
here minijinja runs it in a process of its own, with the same result (see `template_syntax`, `template_worker`). What it
may read is fixed: messages, tools, special tokens, and those options that its text asks for. For training it also tells
which characters of the text an assistant wrote (see `learned_spans`).
"""

from collections.abc import Mapping, Sequence
from typing import Any

from seqloom.core.errors import DataError
from seqloom.data import learned_spans
from seqloom.data.messages import Copier, copy_messages, copy_tools
from seqloom.data.template_program import Conversation, Program, Span

Messages = Sequence[Mapping[str, Any]]
Tools = Sequence[Mapping[str, Any]] | None

_GIVEN = ("messages", "tools", "add_generation_prompt")
_NO_OPTIONS: Mapping[str, Any] = {}


class ChatTemplate:
    """A chat template and the special tokens it writes."""

    def __init__(self, source: str, names: Mapping[str, str], *, with_tools: str | None = None) -> None:
        """
        Args:
            source: the template in the language of jinja2.
            names: spellings of special tokens, such as `bos_token`.
            with_tools: another template for conversations with tools, if the model has two.
        Raises:
            DataError: it cannot be rendered here as jinja2 renders it.
        """
        self.source, self.names = source, dict(names)
        self._program = Program(source, names)
        self._with_tools = self._program if with_tools is None else Program(with_tools, names)

    @property
    def options(self) -> tuple[str, ...]:
        """Names of the options that the template reads, such as `enable_thinking`."""
        given = {*_GIVEN, *self.names}
        return tuple(sorted((self._program.reads | self._with_tools.reads) - given))

    @property
    def stop_mark(self) -> str | None:
        """What the template writes right after an answer, such as `<|im_end|>`; None if it does not show that."""
        return self._program.stop_mark or None

    def render(
        self,
        messages: Messages,
        *,
        tools: Tools = None,
        add_generation_prompt: bool = False,
        options: Mapping[str, Any] = _NO_OPTIONS,
    ) -> str:
        """The text of a conversation.

        Args:
            messages: objects with role, content, and for an assistant reasoning_content and tool_calls.
            tools: functions that may be called, as JSON schemas.
            add_generation_prompt: end with the beginning of an answer.
            options: further settings of the template, among those that it reads.
        Raises:
            DataError: messages, tools or options that cannot be used, or a template that refuses them or exceeds a
                limit; with the template's own words if it has any.
        """
        return self._conversation(messages, tools, options).render({"add_generation_prompt": add_generation_prompt})

    def render_learned(
        self, messages: Messages, *, tools: Tools = None, options: Mapping[str, Any] = _NO_OPTIONS, given: int = 0
    ) -> tuple[str, list[Span]]:
        """The text of a conversation and where in it the answers of assistants stand.

        An answer begins where the prompt for it ends and includes the mark that ends it.

        Args:
            given: so many messages at the beginning are only read.
        Raises:
            DataError: as `render`, and where an answer begins or ends cannot be told exactly.
        """
        return learned_spans.find(self._conversation(messages, tools, options), given)

    def render_turns(
        self, messages: Messages, *, tools: Tools = None, options: Mapping[str, Any] = _NO_OPTIONS, given: int = 0
    ) -> list[tuple[str, list[Span]]]:
        """The texts from which a conversation is learned, with the places of the answers.

        One text, if what was written stays as it was. Some templates rewrite earlier answers once there is a new
        question, and leave away their thoughts; then there is a text for every question, as the model saw it, and only
        the answers to that question are learned from it (post-training spec section 2.1).
        """
        conversation = self._conversation(messages, tools, options)
        return [learned_spans.find(part, start) for part, start in learned_spans.turns(conversation, given)]

    def _conversation(self, messages: Messages, tools: Tools, options: Mapping[str, Any]) -> Conversation:
        for name in options:
            if name in _GIVEN or name in self.names:
                raise DataError(f"template option '{name}': comes from the conversation or the tokenizer")
            if name not in self.options:
                known = ", ".join(self.options) or "none"
                raise DataError(f"template option '{name}': this chat template does not read it; it reads: {known}")
        copier = Copier()
        variables = {name: copier.copy(value, f"template option '{name}'") for name, value in options.items()}
        variables["tools"] = copy_tools(tools, copier)
        program = self._with_tools if tools else self._program
        return Conversation(program, copy_messages(messages, copier), variables, copier.odd_numbers)
