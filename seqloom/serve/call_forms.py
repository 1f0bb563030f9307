"""The inside of a tool call, between its tags, read while it arrives.

Each form is fed text and gives (name, "") once and then (None, arguments) piece by piece, the last bracket only when
the closing tag has come and `end` is called. What is no call raises `MalformedCallError`.
"""

import json
import re
from collections.abc import Iterator
from typing import Any, Literal, NoReturn

from seqloom.serve.call_types import Tools, as_json, declared, read_json
from seqloom.serve.text import overlap

PARAMETER_END = "</parameter>"


class MalformedCallError(Exception):
    """The text is no call in this form."""


def _malformed() -> NoReturn:
    raise MalformedCallError


class XmlCall:
    """The inside of a call in tags."""

    def __init__(self, tools: Tools) -> None:
        self._tools = tools
        self._held = ""
        self._state: Literal["name", "body", "value", "text", "end"] = "name"
        self._types: dict[str, set[str]] = {}
        self._key = ""
        self._opening = "{"

    def push(self, text: str) -> Iterator[tuple[str | None, str]]:
        self._held += text
        while True:
            state = self._state
            piece = {
                "name": self._name,
                "body": self._inside,
                "value": self._value,
                "text": self._text,
                "end": self._rest,
            }[state]()
            if piece is not None:
                yield piece
            if piece is None and state == self._state:
                return

    def end(self) -> Iterator[tuple[str | None, str]]:
        if self._state != "end":
            _malformed()
        yield None, "{}" if self._opening == "{" else "}"

    def _tag(self, *allowed: str) -> str | None:
        """The next tag, taken out, without its brackets; None if it is not whole yet."""
        self._held = self._held.lstrip()
        if (found := re.match(r"<([^<>\s]+)>", self._held)) and found[1].startswith(allowed):
            self._held = self._held[found.end() :]
            return found[1]
        begun = self._held[1:]
        waits = not re.search(r"[<>\s]", begun) and any(
            begun.startswith(name) or name.startswith(begun) for name in allowed
        )
        if self._held and not (self._held[0] == "<" and waits):
            _malformed()
        return None

    def _name(self) -> tuple[str | None, str] | None:
        tag = self._tag("function=")
        if tag is None:
            return None
        name = tag.removeprefix("function=")
        self._types = declared(self._tools, name)
        self._state = "body"
        return (name or _malformed()), ""

    def _inside(self) -> tuple[str | None, str] | None:
        tag = self._tag("parameter=", "/function")
        if tag is None:
            return None
        if tag == "/function":
            self._state = "end"
            return None
        self._state = "value"
        self._key = tag.removeprefix("parameter=") if tag > "parameter=" else _malformed()
        return None

    def _value(self) -> tuple[str | None, str] | None:
        """A value's beginning, or all of it if only that says what it is."""
        if not self._held:
            return None
        types = self._types.get(self._key, {"string"})
        opening = f"{self._opening}{json.dumps(self._key, ensure_ascii=False)}: "
        if types != {"string"}:
            text, closed, rest = self._held.partition(PARAMETER_END)
            if not closed:
                return None
            self._held, self._state = rest, "body"
            value = as_json(text.removeprefix("\n").removesuffix("\n"), types)
        else:
            self._held, self._state = self._held.removeprefix("\n"), "text"
            value = '"'
        self._opening = ", "
        return None, opening + value

    def _text(self) -> tuple[str | None, str] | None:
        """The next part of a text, without the line break that may belong to the closing tag."""
        text, closed, rest = self._held.partition(PARAMETER_END)
        if closed:
            self._held, self._state = rest, "body"
            return None, _escaped(text.removesuffix("\n")) + '"'
        certain = len(text) - max(overlap(text, PARAMETER_END), overlap(text, "\n" + PARAMETER_END))
        self._held = text[certain:]
        return (None, _escaped(text[:certain])) if certain else None

    def _rest(self) -> None:
        self._held = self._held.lstrip()
        if self._held:
            _malformed()


class JsonCall:
    """The inside of a call in JSON."""

    _HEAD = re.compile(r'\s*\{\s*"name"\s*:\s*("(?:[^"\\]|\\.)+")\s*,\s*"(?:arguments|parameters)"\s*:\s*(?=\{)')
    _TURNS = re.compile(r'[{}"]|\\.', re.DOTALL)

    def __init__(self, tools: Tools) -> None:
        self._held = ""
        self._arguments: list[str] = []
        self._state: Literal["head", "arguments", "end"] = "head"
        self._depth, self._quoted = 0, False

    def push(self, text: str) -> Iterator[tuple[str | None, str]]:
        self._held += text
        if self._state == "head" and (found := self._HEAD.match(self._held)):
            self._held, self._state = self._held[found.end() :], "arguments"
            yield _read(found[1]), ""
        if self._state == "arguments" and (part := self._scan()):
            self._arguments.append(part)
            if self._depth == 0:
                _read("".join(self._arguments))
                part = part[:-1]  # the last bracket waits until the whole call is well-formed
            yield None, part

    def end(self) -> Iterator[tuple[str | None, str]]:
        if self._state == "end":
            if self._held.strip() != "}":
                _malformed()
            yield None, "}"
            return
        if self._state == "arguments":
            _malformed()
        call = _read(self._held)  # in another order than usual
        if not isinstance(call, dict) or not isinstance(call.get("name"), str) or not call["name"]:
            _malformed()
        arguments = call.get("arguments", call.get("parameters", {}))
        if isinstance(arguments, str):
            arguments = _read(arguments)
        if not isinstance(arguments, dict):
            _malformed()
        yield call["name"], ""
        yield None, json.dumps(arguments, ensure_ascii=False)

    def _scan(self) -> str:
        """Take out what belongs to the arguments, up to the bracket that ends them."""
        at = 0
        for found in self._TURNS.finditer(self._held):
            at, turn = found.end(), found[0]
            if turn == '"':
                self._quoted = not self._quoted
            elif not self._quoted and turn in "{}":
                self._depth += 1 if turn == "{" else -1
                if self._depth == 0:
                    self._state = "end"
                    break
        if self._state == "arguments":
            at = len(self._held) - (self._held.endswith("\\") and at < len(self._held))
        part, self._held = self._held[:at], self._held[at:]
        return part


def _read(text: str) -> Any:
    """JSON as the standard has it."""
    try:
        return read_json(text)
    except (ValueError, RecursionError):
        _malformed()


def _escaped(text: str) -> str:
    """The inside of a JSON string."""
    return json.dumps(text, ensure_ascii=False)[1:-1]
