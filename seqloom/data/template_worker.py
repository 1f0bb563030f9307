"""Chat templates are rendered in a process of their own, and this is that process.

A template is a program by a stranger. The engine counts its steps, but some of what it may build costs more than it
counts: a list that holds the same list twice, twenty times over, has a million entries, and a namespace that holds
itself has no end. So the operating system limits memory and time, and who exceeds them loses this process and no other.

It is started as a script with a pipe on each side and imports nothing of the package. Every message is four bytes of
length and JSON; `_answer` says which there are.
"""

import contextlib
import importlib
import json
import re
import signal
import struct
import sys
from datetime import datetime
from typing import IO, Any

FUEL = 2_000_000
"""Steps of the engine; text counts one step for every 64 bytes each time it is copied."""
SECONDS = 0.5
"""Processor time of one rendering."""
MEMORY = 400 << 20
"""Bytes of memory of the process."""
MAX_OUTPUT = 16 << 20
"""Characters of one rendering."""

UNDEFINED = "\0undefined"
"""What a rewritten template passes on in place of a value that does not exist (see `template_syntax`)."""

_KEPT = 32
_MAX_INDENT = 64
HEADER = struct.Struct(">I")
_DATE = re.compile(r"%-?[aAbBcdFGHIjmMpSTuUVwWxXyYzZ%]")


class _RaisedError(Exception):
    """The template called raise_exception."""


class _WrongError(Exception):
    """The template asked for what its language does not give."""


def frame(message: dict[str, Any]) -> bytes:
    """A message as it is sent: its length, then itself."""
    data = json.dumps(message).encode("ascii")
    return HEADER.pack(len(data)) + data


def send(stream: IO[bytes], message: dict[str, Any]) -> None:
    """Write one message."""
    stream.write(frame(message))
    stream.flush()


def receive(stream: IO[bytes]) -> dict[str, Any] | None:
    """Read one message; None if the other side is gone."""
    header = stream.read(HEADER.size)
    if len(header) < HEADER.size:
        return None
    (size,) = HEADER.unpack(header)
    data = stream.read(size)
    found: dict[str, Any] | None = json.loads(data) if len(data) == size else None
    return found


class _Templates:
    """Compiled templates, the latest few."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self._environments: dict[str, Any] = {}
        self._now = ""

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """Compile a template or render it.

        {key, source}           -> {compiled}: it is known from now on
        {key, variables, now}   -> {text}
        anything                -> {unknown}: send the source first
                                 | {raised}: the template's own words
                                 | {failed, line}: what went wrong where
        """
        key = request["key"]
        try:
            if "source" in request:
                self._environments[key] = self._environment(request["source"])
                while len(self._environments) > _KEPT:
                    del self._environments[next(iter(self._environments))]
                return {"compiled": key}
            if key not in self._environments:
                return {"unknown": key}
            self._now = request["now"]
            text = self._environments[key].render_template("chat", **request["variables"])
        except _RaisedError as error:
            return {"raised": str(error)}
        except _WrongError as error:
            return {"failed": str(error), "line": None}
        except self._engine.TemplateError as error:
            if error.kind == "OutOfFuel":
                return {"failed": f"it takes more than {FUEL:,} steps", "line": None}
            return {"failed": error.detail or error.message, "line": error.line}
        except MemoryError:
            return {"failed": f"it takes more than {MEMORY >> 20} MiB of memory", "line": None}
        except Exception as error:  # a method of a list or an object that it has not, or called wrongly
            return {"failed": str(error), "line": None}
        if len(text) > MAX_OUTPUT:
            return {"failed": f"it writes {len(text):,} characters; at most {MAX_OUTPUT:,} are allowed", "line": None}
        return {"text": text}

    def _environment(self, source: str) -> Any:
        made = self._engine.Environment(
            trim_blocks=True, lstrip_blocks=True, fuel=FUEL, auto_escape_callback=lambda name: False
        )
        made.remove_global("debug")
        made.add_global("raise_exception", _raise)
        made.add_global("strftime_now", lambda form: _date(datetime.fromisoformat(self._now), form))
        made.add_filter("seqloom_json", _json)
        made.add_test("seqloom_loopable", _check_loopable)
        made.add_test("iterable", _is_iterable)
        made.add_test("sequence", lambda value: isinstance(value, str | list | tuple | dict))
        made.add_template("chat", source)
        return made


def _raise(message: Any = "") -> None:
    raise _RaisedError(str(message))


def _date(now: datetime, form: Any) -> str:
    if not isinstance(form, str) or "%" in _DATE.sub("", form):
        raise _WrongError(f"strftime_now: {form!r} is not a form of a date that is known here")
    return now.strftime(form)


def _json(
    text: str, ensure_ascii: Any = False, indent: Any = None, separators: Any = None, sort_keys: Any = False
) -> str:
    """JSON of the engine, which escapes what HTML does not like, written as `json.dumps` writes it.

    The engine's JSON goes before, since numbers and missing values change on their way to a function of ours.
    """
    value = json.loads(text)
    if value == UNDEFINED:
        raise _WrongError("tojson: the value does not exist")
    if (len(indent) if isinstance(indent, str) else indent or 0) > _MAX_INDENT:
        raise _WrongError(f"tojson: an indentation of more than {_MAX_INDENT}")
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _is_iterable(value: Any) -> bool:
    try:
        iter(value)
    except TypeError:
        return False
    return True


def _check_loopable(value: Any) -> bool:
    if not _is_iterable(value):
        raise _WrongError(f"a loop over {value!r}, which holds nothing to loop over")
    return True


def _limit() -> None:
    """Let the operating system end this process when it takes too much memory; it must leave nothing behind."""
    try:
        import resource
    except ImportError:  # not a Unix
        return
    for kind, limit in ((resource.RLIMIT_AS, MEMORY), (resource.RLIMIT_CORE, 0)):
        _, most = resource.getrlimit(kind)
        with contextlib.suppress(ValueError, OSError):  # some systems know no such limit
            resource.setrlimit(kind, (limit, most) if most == resource.RLIM_INFINITY else (min(limit, most), most))


def _timer(seconds: float) -> None:
    """After so much processor time the operating system ends this process; 0 stops the clock."""
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_PROF, seconds)


def main() -> None:
    _limit()
    templates = _Templates(importlib.import_module("minijinja"))
    send(sys.stdout.buffer, {"ready": True})
    while (request := receive(sys.stdin.buffer)) is not None:
        _timer(SECONDS)
        reply = templates.answer(request)
        _timer(0)
        send(sys.stdout.buffer, reply)


if __name__ == "__main__":
    main()
