"""An engine without a model, behind the real worker loop: any text on demand, at any speed, and death on demand.

What a request gets is told by its prompt. The last of these that stands in it counts:

    SAY{...}     exactly this text, one token a word, then the end of the text; with the marks of the request (such as
                 `<think>`) it is split into reasoning, tool calls and content
    COUNT{n}     "1 2 3 … n"
    DIE{n}       n words, then the process kills itself
    HANG{n}      n words, then the process does nothing any more
    SLOW{n}      n words, each a tenth of a second
    otherwise    "one two three … ten" over and over until max_tokens

Logprob of every token is -0.5, and of the next likely -1.5. As a process: `python fake_engine.py`, which speaks the
worker's protocol and takes {"engine": {"rows": 4, "turn_seconds": 0.0, "capacity": 4096, "start_seconds": 0.0}}.
"""

import dataclasses
import os
import re
import signal
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

from seqloom.data.template_worker import receive, send
from seqloom.data.tokenizer import TextTokenizer, open_tokenizer
from seqloom.serve import worker
from seqloom.serve.worker import serve, take_pipes

WORDS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
COMMAND = re.compile(r"(SAY|COUNT|DIE|HANG|SLOW)\{(.*?)\}(?!\})", re.DOTALL)
COMMAND_LINE = [sys.executable, str(Path(__file__).resolve())]


class Choice(NamedTuple):
    token: int
    logprob: float | None
    top: list[tuple[int, float]]


@dataclasses.dataclass
class Fresh:
    pieces: list[tuple[str, str]] = dataclasses.field(default_factory=list)
    token_ids: list[int] = dataclasses.field(default_factory=list)
    logprobs: list[Any] | None = None
    prompt_logprobs: list[Any] | None = None


@dataclasses.dataclass
class Usage:
    prompt_tokens: int
    cached_tokens: int = 0
    completion_tokens: int = 0
    reasoning_tokens: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0


@dataclasses.dataclass
class Statistics:
    rows_running: int = 0
    rows_waiting: int = 0
    pages: int = 64
    pages_free: int = 64
    pages_remembered: int = 0
    prefix_reuse: str = "on"
    graphs: str = "off: nothing is recorded on a CPU"
    prefix_hit_tokens: int = 0
    prefix_query_tokens: int = 0
    preemptions: int = 0
    drafted: list[int] = dataclasses.field(default_factory=lambda: [0, 0])
    accepted: list[int] = dataclasses.field(default_factory=lambda: [0, 0])
    tokens_in: int = 0
    tokens_out: int = 0


class FakeRequest:
    def __init__(self, prompt: list[int], sampling: Any, marks: Any, tokenizer: TextTokenizer) -> None:
        text = tokenizer.decode(prompt, specials=True)
        found = COMMAND.findall(text)
        self.command, argument = found[-1] if found else ("", "")
        count = int(argument) if argument.isdigit() else 0
        answer = argument if self.command == "SAY" else " ".join(str(n) for n in range(1, count + 1))
        words = re.findall(r"\s*\S+|\s+$", answer)
        self._ends = bool(found)
        self._words = _split(words, marks)
        self.breaks_after = count if self.command in ("DIE", "HANG") else None
        self.sampling, self._tokenizer = sampling, tokenizer
        self.finish_reason: str | None = None
        self.error: str | None = None
        self.failure = None
        self.usage = Usage(len(prompt), cached_tokens=len(prompt) // 64 * 64)
        self._waiting = Fresh()
        self.fresh = Fresh()
        if getattr(sampling, "prompt_logprobs", None) is not None:
            self._waiting.prompt_logprobs = [
                Choice(prompt[0], None, []),
                *(Choice(token, -0.5, [(token, -0.5)]) for token in prompt[1:]),
            ]

    def step(self) -> None:
        self.fresh, self._waiting = self._waiting, Fresh()
        drawn = self.usage.completion_tokens
        if self._ends and drawn >= len(self._words):
            self.finish_reason = "eos"
            self._draw(self._tokenizer.eos)
            return
        channel, word = self._words[drawn] if self._ends else ("content", ("", " ")[drawn > 0] + WORDS[drawn % 10])
        self._draw(self._tokenizer.encode(word)[0] if word else 0)
        self.usage.reasoning_tokens += channel == "reasoning"
        self.usage.drafted_tokens += 2
        self.usage.accepted_tokens += 1
        if word:
            self.fresh.pieces.append((channel, word))
        if self.usage.completion_tokens == self.sampling.max_tokens:
            self.finish_reason = "length"

    def _draw(self, token: int) -> None:
        self.usage.completion_tokens += 1
        self.fresh.token_ids.append(token)
        if (count := getattr(self.sampling, "logprobs", None)) is not None:
            likely = [(token, -0.5), ((token + 1) % self._tokenizer.size, -1.5)]
            self.fresh.logprobs = [Choice(token, -0.5, likely[:count])]


def _split(words: list[str], marks: Any) -> list[tuple[str, str]]:
    """A channel for every word; the tag of thinking has no text, those of a tool call belong to it."""
    found, channel = [], "reasoning" if marks is not None and marks.starts_thinking else "content"
    for word in words:
        tag = None if marks is None else word.strip()
        if tag and tag == marks.think_close:
            channel, word = "content", ""
        elif tag and tag == marks.tool_open:
            channel = "tool"
        elif tag and tag == marks.tool_close:
            found.append(("tool", word))
            channel = "content"
            continue
        found.append((channel, word))
    return found


class FakeEngine:
    """As much of `serve.engine.Engine` as the worker uses."""

    def __init__(
        self, tokenizer: TextTokenizer, rows: int = 4, turn_seconds: float = 0.0, capacity: int = 4096,
        start_seconds: float = 0.0,
    ) -> None:  # fmt: skip
        time.sleep(start_seconds)
        self._tokenizer, self._rows, self._turn_seconds = tokenizer, rows, turn_seconds
        self.capacity = capacity
        self.statistics = Statistics()
        self._running: list[FakeRequest] = []
        self._waiting: list[FakeRequest] = []

    def submit(self, prompt: list[int], sampling: Any, draft_tokens: Any = 0, marks: Any = None) -> FakeRequest:
        request = FakeRequest(prompt, sampling, marks, self._tokenizer)
        self._waiting.append(request)
        self.statistics.tokens_in += len(prompt)
        self._count()
        return request

    def step(self) -> list[FakeRequest]:
        while self._waiting and len(self._running) < self._rows:
            self._running.append(self._waiting.pop(0))
        time.sleep(0.1 if any(one.command == "SLOW" for one in self._running) else self._turn_seconds)
        done = self._running
        for request in done:
            if request.breaks_after == request.usage.completion_tokens:
                os.kill(os.getpid(), signal.SIGKILL if request.command == "DIE" else signal.SIGSTOP)
            request.step()
        self.statistics.tokens_out += len(done)
        self._running = [one for one in done if one.finish_reason is None]
        self._count()
        return done

    def compile(self, grammar: object) -> None:
        """There is none that it would keep to."""

    def cancel(self, request: FakeRequest) -> None:
        for rows in (self._running, self._waiting):
            if request in rows:
                rows.remove(request)
        self._count()

    def _count(self) -> None:
        self.statistics.rows_running, self.statistics.rows_waiting = len(self._running), len(self._waiting)
        self.statistics.pages_free = self.statistics.pages - len(self._running)


def read_marks(given: dict[str, Any] | None) -> Any:
    """Marks without the torch that the real ones import."""
    names = ("think_open", "think_close", "tool_open", "tool_close", "starts_thinking")
    return None if given is None else SimpleNamespace(**{name: given.get(name) for name in names})


def main() -> None:
    source, sink = take_pipes()
    opening = receive(source)
    if opening is None:
        return
    if opening["engine"].pop("fails", False):
        send(sink, {"failed": "no such model"})
        return
    worker.read_marks = read_marks
    serve(FakeEngine(open_tokenizer(opening["open"]), **opening["engine"]), source, sink)


if __name__ == "__main__":
    main()
