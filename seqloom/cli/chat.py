"""`seqloom chat`: a conversation in the terminal.

A model folder with a chat template gets its turns through that template; the thoughts of an answer go back to it as
thoughts. A base model has none; the conversation is then one growing text, each line of the user is appended to it and
the model goes on from there.
"""

import contextlib
import importlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from seqloom.cli.arguments import parse
from seqloom.cli.stream import put
from seqloom.core.errors import ConfigError
from seqloom.nn.state_formats import KVFormat, SsmFormat
from seqloom.serve.config import Sampling

if TYPE_CHECKING:
    from seqloom.data.chat_template import ChatTemplate
    from seqloom.data.tokenizer import TextTokenizer
    from seqloom.serve.engine import Prompt

_THINK, _ANSWER = "<think>", "</think>"


def main(arguments: list[str]) -> None:
    parse("chat", chat, arguments)


def chat(
    run: tyro.conf.Positional[Path],
    *,
    sampling: Annotated[Sampling, tyro.conf.arg(name="")] = Sampling(),
    draft_tokens: int = 0,
    kv_cache: KVFormat | None = None,
    ssm_state: SsmFormat | None = None,
    system: str | None = None,
    template_option: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = (),
) -> None:
    """Talk to a trained model. Ctrl-C stops an answer, /reset begins anew, /quit or Ctrl-D leaves.

    Example: seqloom chat runs/demo --max-tokens 60 --temperature 0.7

    Args:
        run: a run folder or public model folder.
        draft_tokens: tokens to guess ahead with the prediction block (faster, never different).
        kv_cache: what to store keys and values in; as the model has it, if not given.
        ssm_state: what to store Mamba states in; _sr rounds stochastically.
        system: what the model is told before the conversation.
        template_option: NAME=VALUE for the model's chat template, such as enable_thinking=false; may be repeated.
    """
    from seqloom.data.tokenizer import open_tokenizer
    from seqloom.serve.engine import Engine

    with contextlib.suppress(ImportError):
        importlib.import_module("readline")  # gives `input` its line editing and history
    options, tokenizer = _options(template_option), open_tokenizer(run)
    conversation = _begin(tokenizer, system, options)
    engine = Engine(run, kv_cache=kv_cache, ssm_state=ssm_state)
    if isinstance(conversation, Turns):
        engine.tokenizer = conversation.answers
    print("/reset begins anew, /quit leaves, Ctrl-C stops an answer")
    while (line := _read_line()) != "/quit":
        if line == "/reset":
            conversation = _begin(tokenizer, system, options)
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

    def __init__(
        self,
        tokenizer: "TextTokenizer",
        template: "ChatTemplate",
        system: str | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        self.answers = Answers(tokenizer)
        self._tokenizer, self._template, self._options = tokenizer, template, options or {}
        self._messages = [] if system is None else [{"role": "system", "content": system}]
        self._thinking = False
        # A template or an option that cannot be used is better known now than after the model is loaded.
        template.render([*self._messages, {"role": "user", "content": "?"}], options=self._options)

    def say(self, line: str) -> None:
        self._messages.append({"role": "user", "content": line})

    def prompt(self) -> "Prompt":
        text = self._template.render(self._messages, add_generation_prompt=True, options=self._options)
        self._thinking = text.rstrip().endswith(_THINK)
        return self._tokenizer.encode(text, specials=True)

    def answer(self, text: str) -> None:
        before, mark, after = text.partition(_ANSWER)
        if mark or self._thinking:
            thoughts = {"reasoning_content": before.strip().removeprefix(_THINK).strip("\n")}
            self._messages.append({"role": "assistant", "content": after.strip("\n"), **thoughts})
        else:
            self._messages.append({"role": "assistant", "content": text})


class Answers:
    """A tokenizer as chats need it: an answer ends where a turn ends, and the marks of thoughts are shown."""

    def __init__(self, tokenizer: "TextTokenizer") -> None:
        self._tokenizer = tokenizer
        self.bos, self.eos, self.size = tokenizer.bos, tokenizer.answer_end, tokenizer.size
        marks = [tokenizer.encode(mark, specials=True) for mark in (_THINK, _ANSWER)]
        self._shown = {ids[0] for ids in marks if len(ids) == 1}

    def encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text)

    def decode(self, ids: Sequence[int]) -> str:
        counts = self._tokenizer.token_bytes
        return self._tokenizer.decode([id for id in ids if counts[id] or id in self._shown], specials=True)


def _options(texts: Iterable[str]) -> dict[str, Any]:
    """NAME=VALUE, where a value that is JSON is what it means there."""
    found: dict[str, Any] = {}
    for text in texts:
        name, mark, value = text.partition("=")
        if not mark or not name.isidentifier():
            raise ConfigError(f"--template-option: expected NAME=VALUE, got {text!r}")
        try:
            found[name] = json.loads(value)
        except ValueError:
            found[name] = value
    return found


def _begin(tokenizer: "TextTokenizer", system: str | None, options: Mapping[str, Any]) -> PlainText | Turns:
    if tokenizer.template is not None:
        return Turns(tokenizer, tokenizer.template, system, options)
    if system is not None or options:
        raise ConfigError("--system and --template-option need a chat template, and this model has none")
    return PlainText()
