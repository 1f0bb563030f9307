"""What the front knows of the model: its tokenizer, its chat template, and how its answers are marked."""

from collections.abc import Mapping, Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from seqloom.core.errors import DataError
from seqloom.data.chat_template import ChatTemplate
from seqloom.data.tokenizer import TextTokenizer, open_tokenizer
from seqloom.serve.http.errors import RefusedError, bad
from seqloom.serve.http.quick_render import QuickRenderer
from seqloom.serve.marks import ChannelMarks, marks_of
from seqloom.serve.tool_calls import Form, form_of
from seqloom.serve.vocabulary import Vocabulary

_TAG = 16
"""More characters than a tag of thinking has."""


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
    def quick(self) -> QuickRenderer | None:
        """What renders short chats without a thread."""
        return None if self.template is None else QuickRenderer(self.template)

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
        try:
            return self.template.render(
                [clean(message) for message in messages], tools=tools, add_generation_prompt=generate,
                options=self._switched(options, thinking),
            )  # fmt: skip
        except DataError as error:
            raise bad(str(error), "messages") from None

    async def render_quickly(
        self, messages: Sequence[Mapping[str, Any]], options: Mapping[str, Any], thinking: bool | None
    ) -> str | None:
        """What `render` gives for a chat without tools, if it can be had without a thread."""
        if self.quick is None:
            return None
        return await self.quick.render([clean(message) for message in messages], self._switched(options, thinking))

    def _switched(self, options: Mapping[str, Any], thinking: bool | None) -> Mapping[str, Any]:
        """The options of the template, with thinking as set up where nothing is said."""
        if "enable_thinking" not in self.options:
            return options
        return {"enable_thinking": self._thinking if thinking is None else thinking, **options}

    def marks(self, text: str, *, tools: bool) -> ChannelMarks:
        """How the answer to a rendered chat is marked."""
        return _marks(self.template.source if self.template else "", text.rstrip()[-_TAG:], tools)

    def token_bytes(self, token: int) -> bytes:
        """What a token stands for; it may be a part of a character, which is no text."""
        piece = self._vocabulary.pieces[token] if token < self.tokenizer.size else None
        return self.token_text(token).encode() if piece is None else piece

    def token_text(self, token: int) -> str:
        """The text of a token; special ones by their spelling."""
        return self.tokenizer.decode([token], specials=True)


@lru_cache(64)
def _marks(template: str, end: str, tools: bool) -> ChannelMarks:
    return marks_of(template, end, tools=tools)


def clean(message: Mapping[str, Any]) -> dict[str, Any]:
    """A message as templates know it: what clients send back of an answer and is empty is left out, parts are joined.

    Raises:
        RefusedError: a part that is no text.
    """
    empty = ("refusal", "annotations", "audio", "function_call", "tool_calls", "reasoning_content", "reasoning", "name")
    found = {key: value for key, value in message.items() if key not in empty or value not in (None, [], "")}
    if found.get("type") in ("text", "message"):
        del found["type"]
    if isinstance(parts := found.get("content"), list):  # which some templates do not know, and others leave out
        found["content"] = "\n".join(map(_text, parts))
    if found.get("role") == "developer":
        found["role"] = "system"
    return found


def _text(part: Any) -> str:
    if isinstance(part, Mapping) and part.get("type") == "text" and isinstance(part.get("text"), str):
        text: str = part["text"]
        return text
    raise bad(f"messages: only parts of text are known here, got {part!r:.80}", "messages")
