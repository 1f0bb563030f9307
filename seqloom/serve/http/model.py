"""What the front knows of the model: its tokenizer, its chat template, and how its answers are marked."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from seqloom.core.errors import DataError
from seqloom.data.chat_template import ChatTemplate
from seqloom.data.tokenizer import TextTokenizer, open_tokenizer
from seqloom.serve.http.errors import RefusedError, bad
from seqloom.serve.marks import marks_of
from seqloom.serve.tool_calls import Form, form_of
from seqloom.serve.vocabulary import Vocabulary


class ServedModel:
    """
    Args:
        folder: of the model, with its tokenizer.
        name: what clients know it by.
        thinking: whether a chat thinks when the request does not say.
    Raises:
        DataError: there is no tokenizer, or its template cannot be rendered here.
    """

    def __init__(self, folder: Path, name: str, *, thinking: bool = True) -> None:
        self.name = name
        self.tokenizer: TextTokenizer = open_tokenizer(folder)
        self.template: ChatTemplate | None = self.tokenizer.template
        self._vocabulary = Vocabulary(self.tokenizer, self.tokenizer.size)
        self._thinking = thinking

    @cached_property
    def thinks(self) -> bool:
        """Whether the template marks thoughts."""
        return self.template is not None and marks_of(self.template.source, "", tools=False).think_close is not None

    @cached_property
    def form(self) -> Form | None:
        """How it spells calls of tools, if it has any."""
        return None if self.template is None else form_of(self.template.source)

    @cached_property
    def options(self) -> tuple[str, ...]:
        """What its template reads beside the conversation."""
        return () if self.template is None else self.template.options

    @cached_property
    def fingerprint(self) -> str:
        """Tells clients whether two answers with the same seed come from the same vocabulary and release."""
        return f"fp_{self.tokenizer.digest[:12]}"

    def check_name(self, name: str | None) -> None:
        if name is not None and name != self.name:
            raise RefusedError(
                404, f"model: '{name}' is not served; served: {self.name}", param="model", code="model_not_found"
            )

    def encode(self, text: str, *, begin: bool = True) -> list[int]:
        """Ids of a plain text, after the token that every text begins with."""
        beginning = [self.tokenizer.bos] if begin and self.tokenizer.bos is not None else []
        ids = [*beginning, *self.tokenizer.encode(text)]
        if not ids:
            raise bad("prompt: it is empty, and this tokenizer has no token for the beginning of a text", "prompt")
        return ids

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None,
        options: Mapping[str, Any],
        *,
        thinking: bool | None = None,
        generate: bool = True,
    ) -> str:
        """The text of a conversation.

        Args:
            thinking: whether the answer begins with thoughts, where the template leaves that open; None as set up.
        Raises:
            RefusedError: it cannot be rendered.
        """
        if self.template is None:
            raise bad("this model has no chat template; use /v1/completions", "messages")
        if tools and "tools" not in self.template.source:
            raise bad("the chat template of this model knows no tools", "tools")
        if "enable_thinking" in self.options:
            options = {"enable_thinking": self._thinking if thinking is None else thinking, **options}
        try:
            return self.template.render(
                [clean(message) for message in messages], tools=tools, add_generation_prompt=generate, options=options
            )
        except DataError as error:
            raise bad(str(error), "messages") from None

    def token_bytes(self, token: int) -> bytes:
        """What a token stands for; it may be a part of a character, which is no text."""
        piece = self._vocabulary.pieces[token] if token < self.tokenizer.size else None
        return self.token_text(token).encode() if piece is None else piece

    def token_text(self, token: int) -> str:
        """The text of a token; special ones by their spelling."""
        return self.tokenizer.decode([token], specials=True)


def clean(message: Mapping[str, Any]) -> dict[str, Any]:
    """A message as templates know it: what clients send back of an answer and is empty is left out."""
    empty = ("refusal", "annotations", "audio", "function_call", "tool_calls", "reasoning_content", "reasoning", "name")
    found = {key: value for key, value in message.items() if key not in empty or value not in (None, [], "")}
    if found.get("type") in ("text", "message"):
        del found["type"]
    if found.get("role") == "developer":
        found["role"] = "system"
    return found
