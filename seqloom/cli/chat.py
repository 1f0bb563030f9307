"""`seqloom chat`: a conversation in the terminal.

A model folder with a chat template gets its turns through that template. A base model has none; the conversation is
then one growing text, each line of the user is appended to it and the model goes on from there.
"""

import contextlib
import importlib
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from seqloom.cli.arguments import parse
from seqloom.cli.stream import put
from seqloom.core.errors import CheckpointError
from seqloom.serve.config import Sampling

if TYPE_CHECKING:
    from seqloom.data.tokenizer import TextTokenizer
    from seqloom.serve.engine import Prompt

_FUEL = 1_000_000
"""Instructions a chat template may take; a template that loops for ever is stopped."""


def main(arguments: list[str]) -> None:
    parse("chat", chat, arguments)


def chat(
    run: tyro.conf.Positional[Path],
    *,
    sampling: Annotated[Sampling, tyro.conf.arg(name="")] = Sampling(),
    draft_tokens: int = 0,
) -> None:
    """Talk to a trained model. Ctrl-C stops an answer, /reset begins anew, /quit or Ctrl-D leaves.

    Example: seqloom chat runs/demo --max-tokens 60 --temperature 0.7

    Args:
        run: a run folder or public model folder.
        draft_tokens: tokens to guess ahead with the prediction block (faster, never different).
    """
    from seqloom.data.tokenizer import open_tokenizer
    from seqloom.serve.engine import Engine

    with contextlib.suppress(ImportError):
        importlib.import_module("readline")  # gives `input` its line editing and history
    engine, tokenizer = Engine(run), open_tokenizer(run)
    conversation = _begin(tokenizer)
    print("/reset begins anew, /quit leaves, Ctrl-C stops an answer")
    while (line := _read_line()) != "/quit":
        if line == "/reset":
            conversation = _begin(tokenizer)
            continue
        conversation.say(line)
        conversation.answer(_show(engine.stream(conversation.prompt(), sampling, draft_tokens)))


def _read_line() -> str:
    """The next line of the user; the end of input is `/quit`, Ctrl-C discards what was typed."""
    while True:
        try:
            return input("> ")
        except EOFError:
            print()
            return "/quit"
        except KeyboardInterrupt:
            print("  (/quit leaves)")


def _show(pieces: Iterable[str]) -> str:
    """Show an answer as it comes; Ctrl-C ends it early and what was shown stays part of the conversation."""
    text = ""
    try:
        for piece in pieces:
            text += piece
            put(piece)
    except KeyboardInterrupt:
        print(" [stopped]", end="")
    print()
    return text


class PlainText:
    """The conversation with a base model: one text that both sides append to."""

    def __init__(self) -> None:
        self._text = ""

    def say(self, line: str) -> None:
        self._text += line if not self._text or self._text.endswith("\n") else "\n" + line

    def prompt(self) -> "Prompt":
        return self._text

    def answer(self, text: str) -> None:
        self._text += text


class Turns:
    """The conversation with a chat model: messages, rendered by the model's own template for every answer."""

    def __init__(self, tokenizer: "TextTokenizer", template: str) -> None:
        self._tokenizer, self._template = tokenizer, template
        self._messages: list[dict[str, str]] = []

    def say(self, line: str) -> None:
        self._messages.append({"role": "user", "content": line})

    def prompt(self) -> "Prompt":
        from minijinja import Environment, TemplateError

        environment = Environment(trim_blocks=True, lstrip_blocks=True, fuel=_FUEL)
        ids = {"bos_token": self._tokenizer.bos, "eos_token": self._tokenizer.eos}
        names = {name: self._tokenizer.decode([id], specials=True) for name, id in ids.items() if id is not None}
        try:
            text = environment.render_str(self._template, messages=self._messages, add_generation_prompt=True, **names)
        except TemplateError as error:
            raise CheckpointError(f"the chat template of this model cannot be rendered: {error}") from error
        return self._tokenizer.encode(text, specials=True)

    def answer(self, text: str) -> None:
        self._messages.append({"role": "assistant", "content": text})


def _begin(tokenizer: "TextTokenizer") -> PlainText | Turns:
    return PlainText() if tokenizer.chat_template is None else Turns(tokenizer, tokenizer.chat_template)
