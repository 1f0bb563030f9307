"""`seqloom chat`: a conversation in the terminal.

A model folder with a chat template gets its turns through that template; the thoughts of an answer are shown dimmed and
go back to it as thoughts. A base model has none; the conversation is then one growing text, each line of the user is
appended to it and the model goes on from there. What the server would answer is answered here, by the same engine.
"""

import contextlib
import importlib
import json
import signal
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from seqloom.cli.arguments import parse
from seqloom.cli.dialogue import Asked, ask_messages
from seqloom.cli.engine_options import AS_STORED, DraftTokens, EngineOptions
from seqloom.cli.stream import put
from seqloom.core.errors import ConfigError, DataError
from seqloom.serve.config import Sampling

if TYPE_CHECKING:
    from seqloom.data.tokenizer import TextTokenizer
    from seqloom.serve.engine import Engine
    from seqloom.serve.request import Request

_THINK, _ANSWER = "<think>", "</think>"
_COMMANDS = "/reset begins anew, /speed tells how fast the last answer was, /quit leaves, Ctrl-C stops an answer"
_DIM, _PLAIN = "\x1b[2m", "\x1b[22m"


def main(arguments: list[str]) -> None:
    parse("chat", chat, arguments)


def chat(
    run: tyro.conf.Positional[Path],
    *,
    sampling: Annotated[Sampling, tyro.conf.arg(name="")] = Sampling(),
    options: Annotated[EngineOptions, tyro.conf.arg(name="")] = AS_STORED,
    system: str | None = None,
    template_option: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = (),
) -> None:
    """Talk to a trained model. Ctrl-C stops an answer, /reset begins anew, /speed tells how fast the last answer was,
    /quit or Ctrl-D leaves. --thinking-tokens bounds the thinking of models that think; 0 leaves it away.

    Example: seqloom chat runs/demo --max-tokens 60 --temperature 0.7

    Args:
        run: a run folder or public model folder.
        system: what the model is told before the conversation.
        template_option: NAME=VALUE for the model's chat template, such as enable_thinking=false; may be repeated.
    """
    from seqloom.data.tokenizer import open_tokenizer

    if sampling.logprobs is not None or sampling.prompt_logprobs is not None:
        raise ConfigError("--logprobs, --prompt-logprobs: a conversation shows none; see `seqloom generate --json`")
    with contextlib.suppress(ImportError):
        importlib.import_module("readline")  # gives `input` its line editing and history
    of_template, tokenizer = _options(template_option), open_tokenizer(run)
    conversation = _begin(tokenizer, system, of_template)
    engine = options.open(run)
    answer = Answer()
    print(_COMMANDS)
    while (line := _read_line()) != "/quit":
        if line == "/reset":
            conversation = _begin(tokenizer, system, of_template)
        elif line == "/speed":
            print(answer.speed)
        elif line == "/help":
            print(_COMMANDS)
        else:
            try:
                asked, said = conversation.ask(line, sampling), Answer()
                said.show(engine, asked, options.draft_tokens)
            except DataError as error:  # too long, or refused by the template: it was not said
                print(f"seqloom: {error}", file=sys.stderr)
                continue
            answer = said
            conversation.answer(line, answer.text, answer.thoughts)


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


class Answer:
    """An answer shown as it comes; Ctrl-C ends it early and what was shown stays part of the conversation."""

    def __init__(self) -> None:
        self.text = self.thoughts = ""
        self.speed = "nothing was answered yet"
        self._thinking = False

    def show(self, engine: "Engine", asked: Asked, draft_tokens: DraftTokens) -> None:
        start, first = time.perf_counter(), None
        request = engine.submit(asked.prompt, asked.sampling, draft_tokens, asked.marks)
        with _stoppable() as stopped:
            while request.finish_reason is None and not stopped.is_set():
                engine.step()
                if first is None and request.fresh.token_ids:
                    first = time.perf_counter()
                self._take(request.fresh.pieces)
            engine.cancel(request)
        if self._thinking:
            _dim(False)
        if request.error is not None:
            print(f" [ended: {request.error}]", end="")
        elif stopped.is_set():
            print(" [stopped]", end="")
        print()
        if first is not None:
            self.speed = _speed(request, first - start, time.perf_counter() - first)

    def _take(self, pieces: Iterable[tuple[str, str]]) -> None:
        for channel, text in pieces:
            thinking = channel == "reasoning"
            if thinking != self._thinking:
                # On a terminal thoughts are dimmed; in a file their tags show where they are.
                put("" if sys.stdout.isatty() else _THINK if thinking else _ANSWER)
                _dim(thinking)
                self._thinking = thinking
            put(text)
            if thinking:
                self.thoughts += text
            else:
                self.text += text


def _dim(on: bool) -> None:
    if sys.stdout.isatty():
        print(_DIM if on else _PLAIN, end="", flush=True)


@contextlib.contextmanager
def _stoppable() -> Iterator[threading.Event]:
    """Set by Ctrl-C, so that no turn of the engine ends in its middle; a second Ctrl-C does end it."""
    stopped = threading.Event()

    def stop(*_: object) -> None:
        if stopped.is_set():
            raise KeyboardInterrupt
        stopped.set()

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield stopped
    finally:
        signal.signal(signal.SIGINT, before)


def _speed(request: "Request", wait: float, seconds: float) -> str:
    usage = request.usage
    parts = [f"{usage.completion_tokens:,} tokens", f"first after {wait:.2f} s"]
    if usage.completion_tokens > 1:
        parts.insert(0, f"{(usage.completion_tokens - 1) / max(seconds, 1e-9):,.1f} tokens/s")
    if usage.reasoning_tokens:
        parts.append(f"{usage.reasoning_tokens:,} of thinking")
    if usage.drafted_tokens:
        parts.append(f"{usage.accepted_tokens / usage.drafted_tokens:.0%} of {usage.drafted_tokens:,} guesses right")
    if usage.cached_tokens:
        parts.append(f"{usage.cached_tokens:,} of {usage.prompt_tokens:,} tokens of the prompt remembered")
    return ", ".join(parts)


class PlainText:
    """The conversation with a base model: one text that both sides append to."""

    def __init__(self) -> None:
        self._text = ""

    def ask(self, line: str, sampling: Sampling) -> Asked:
        return Asked(self._with(line), sampling)

    def answer(self, line: str, text: str, thoughts: str = "") -> None:
        """Take in what was asked and what was answered."""
        self._text = self._with(line) + text

    def _with(self, line: str) -> str:
        return self._text + (line if not self._text or self._text.endswith("\n") else "\n" + line)


class Turns:
    """The conversation with a chat model: messages, rendered by the model's own template for every answer."""

    def __init__(
        self, tokenizer: "TextTokenizer", system: str | None = None, options: Mapping[str, Any] | None = None
    ) -> None:
        self._tokenizer, self._options = tokenizer, options or {}
        self._messages = [] if system is None else [{"role": "system", "content": system}]
        # A template or an option that cannot be used is better known now than after the model is loaded.
        self.ask("?", Sampling())

    def ask(self, line: str, sampling: Sampling) -> Asked:
        messages = [*self._messages, {"role": "user", "content": line}]
        return ask_messages(self._tokenizer, messages, sampling, self._options)

    def answer(self, line: str, text: str, thoughts: str = "") -> None:
        """Take in what was asked and what was answered."""
        thought = {"reasoning_content": thoughts.strip("\n")} if thoughts else {}
        content = text.strip("\n") if thoughts else text
        self._messages += [
            {"role": "user", "content": line},
            {"role": "assistant", "content": content, **thought},
        ]


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
        return Turns(tokenizer, system, options)
    if system is not None or options:
        raise ConfigError("--system and --template-option need a chat template, and this model has none")
    return PlainText()
