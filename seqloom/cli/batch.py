"""Many prompts from a file to a file: `seqloom generate --input prompts.jsonl --output answers.jsonl`.

Every line of the input is an object with one of `prompt` (a text to go on with), `messages` (a conversation) or
`tokens` (ids), with an `id` (or else the line's number is its id), and with any settings of `Sampling` for this line
alone. A line of the output is written as soon as its answer is finished, so the order is another, and never again: the
same command leaves out what the output already holds, which a digest of line, settings and model tells. A line that
cannot be answered gets `error` in its place and is tried again the next time, as is one that was being written when the
machine stopped.
"""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from seqloom.cli.dialogue import Asked, ask_messages
from seqloom.cli.engine_options import DraftTokens
from seqloom.core.config import parse, to_data
from seqloom.core.errors import DataError, SeqloomError
from seqloom.serve.config import Sampling

if TYPE_CHECKING:
    from seqloom.data.tokenizer import TextTokenizer
    from seqloom.serve.engine import Engine

Id = str | int
Record = dict[str, Any]

_PROMPTS = ("prompt", "messages", "tokens")


@dataclass(frozen=True)
class Line:
    """A line of the input: an object, or why it is none."""

    number: int
    id: Id
    fields: Record
    digest: str = ""
    """Of what it asks, with the settings that hold where it says nothing, and of whom."""
    error: str | None = None


def read_lines(path: Path, sampling: Sampling, answering: str) -> Iterator[Line]:
    """The lines of an input, one after another; empty ones are left out.

    Args:
        sampling: what holds where a line does not say.
        answering: who is asked (`EngineOptions.answering`).
    Raises:
        DataError: the file cannot be read.
    """
    settings = json.dumps(to_data(sampling)) + answering
    try:
        with path.open("rb") as file:
            for number, data in enumerate(file, start=1):
                if data.strip():
                    yield _line(number, data, settings)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error


def _line(number: int, data: bytes, settings: str) -> Line:
    try:
        found = json.loads(data)
        json.dumps(found, ensure_ascii=False).encode()  # half a surrogate pair is no text
    except (ValueError, RecursionError) as error:
        return Line(number, number, {}, error=f"not JSON: {error}")
    if not isinstance(found, dict):
        return Line(number, number, {}, error=f"expected an object, found {type(found).__name__}")
    identity = found.pop("id", number)
    if not isinstance(identity, str | int) or isinstance(identity, bool):
        return Line(number, number, {}, error=f"id: expected a text or a whole number, got {identity!r}")
    asked = json.dumps(found, sort_keys=True) + settings
    return Line(number, identity, found, blake2b(asked.encode(), digest_size=8).hexdigest())


def read_digests(path: Path, sampling: Sampling, answering: str) -> dict[Id, str]:
    """The ids of all lines, with the digest of what each asks of whom.

    Args:
        sampling, answering: as of `read_lines`.
    Raises:
        DataError: there are none, two lines have the same one, or the file cannot be read twice.
    """
    if path.exists() and not path.is_file():
        raise DataError(f"{path}: is no file; prompts are read from one, twice")
    digests: dict[Id, str] = {}
    for line in read_lines(path, sampling, answering):
        if line.id in digests:
            raise DataError(f"{path}: line {line.number} has the id {line.id!r} again; answers are told apart by it")
        digests[line.id] = line.digest
    if not digests:
        raise DataError(f"{path}: holds no prompts")
    return digests


def read_finished(path: Path, digests: Mapping[Id, str]) -> set[Id]:
    """The ids that an output holds answers for; errors and a last line that was cut off are taken out of the file.

    Args:
        digests: of what the lines of the input ask.
    Raises:
        DataError: it holds something else, or cannot be written.
    """
    try:
        path.open("ab").close()
        lines = path.read_bytes().splitlines(keepends=True) if path.is_file() else []
    except OSError as error:
        raise DataError(f"{path}: cannot be written: {error.strerror}") from error
    kept, finished = [], set()
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
            identity, wrong = record["id"], "error" in record
        except (ValueError, TypeError, KeyError):
            if number == len(lines) and not line.endswith(b"\n"):
                break
            raise DataError(f"{path}: line {number} is no answer of this command; name another --output") from None
        if wrong or not line.endswith(b"\n"):
            continue
        if identity not in digests:
            raise DataError(f"{path}: answers {identity!r}, which is not in the input; name another --output")
        if record.get("digest") != digests[identity]:
            raise DataError(
                f"{path}: {identity!r} was answered when its line, the settings or the model were others; name another "
                "--output"
            )
        kept.append(line)
        finished.add(identity)
    if len(kept) < len(lines):
        beside = path.with_name(f"{path.name}.new")
        with beside.open("wb") as file:
            file.writelines(kept)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    return finished


def read_asked(line: Line, tokenizer: "TextTokenizer", sampling: Sampling) -> Asked:
    """What a line asks of the engine.

    Args:
        sampling: what holds where the line does not say.
    Raises:
        ConfigError, DataError: it cannot be understood.
    """
    if line.error is not None:
        raise DataError(line.error)
    settings = dict(line.fields)
    given = [name for name in _PROMPTS if name in settings]
    if len(given) != 1:
        raise DataError(f"expected one of {', '.join(_PROMPTS)}; got {', '.join(given) or 'none'}")
    asked = settings.pop(given[0])
    own = parse(Sampling, {**to_data(sampling), **settings}, "line") if settings else sampling
    match given[0], asked:
        case "prompt", str():
            return Asked(asked, own)
        case "messages", list():
            return ask_messages(tokenizer, asked, own)
        case "tokens", list() if asked and {type(token) for token in asked} == {int}:
            return Asked(asked, own)
    kind = {"prompt": "a text", "messages": "a list of messages", "tokens": "a list of token ids"}[given[0]]
    raise DataError(f"{given[0]}: expected {kind}, got {json.dumps(asked):.80}")


@dataclass
class _Answer:
    """What has come of an answer."""

    line: Line
    texts: dict[str, str] = field(default_factory=dict)
    tokens: list[int] = field(default_factory=list)
    likely: dict[str, list[Any]] = field(default_factory=dict)

    def take(self, fresh: Any) -> None:
        for channel, text in fresh.pieces:
            self.texts[channel] = self.texts.get(channel, "") + text
        self.tokens += fresh.token_ids
        for name in ("logprobs", "prompt_logprobs"):
            if (found := likely(getattr(fresh, name))) is not None:
                self.likely.setdefault(name, []).extend(found)

    def record(self, request: Any) -> Record:
        if request.error is not None:
            return failed(self.line, request.error)
        thoughts = {"reasoning": self.texts["reasoning"]} if "reasoning" in self.texts else {}
        return {
            "id": self.line.id,
            "text": self.texts.get("content", ""),
            **thoughts,
            "finish_reason": request.finish_reason,
            "prompt_tokens": request.usage.prompt_tokens,
            "cached_tokens": request.usage.cached_tokens,
            "token_ids": self.tokens,
            **self.likely,
            "digest": self.line.digest,
        }


def likely(places: Sequence[Any] | None) -> list[Any] | None:
    """Log-probabilities as they are written: for each token its own, and the likeliest tokens with theirs."""
    return None if places is None else [[place.logprob, place.top] for place in places]


def write(file: IO[str], record: Record) -> None:
    """One line, handed to the operating system at once: what is written outlives this process."""
    file.write(json.dumps(record, ensure_ascii=False) + "\n")
    file.flush()


def failed(line: Line, error: str) -> Record:
    return {"id": line.id, "line": line.number, "error": error}


def answers(
    engine: "Engine", lines: Iterator[Line], sampling: Sampling, draft_tokens: DraftTokens = 0
) -> Iterator[Record]:
    """The record of every line, as they finish; twice as many lines as the engine has rows are under way."""
    running: dict[Any, _Answer] = {}
    tokenizer: Any = engine.tokenizer
    more = True
    while more or running:
        while more and len(running) < 2 * engine.max_rows:
            line = next(lines, None)
            if line is None:
                more = False
                break
            try:
                asked = read_asked(line, tokenizer, sampling)
                running[engine.submit(asked.prompt, asked.sampling, draft_tokens, asked.marks)] = _Answer(line)
            except SeqloomError as error:
                yield failed(line, str(error))
        for request in engine.step() if running else ():
            running[request].take(request.fresh)
            if request.finish_reason is not None:
                yield running.pop(request).record(request)
