"""Messages and tools as people send them, checked and copied into what chat templates expect.

A message has a role and a content: a text, or parts of text. One of the assistant may also hold its thoughts
(`reasoning_content`) and calls of tools, whose arguments become an object where they came as JSON, which is how the
OpenAI API sends them. What a template never sees cannot be rendered wrongly, so an unknown key is an error.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from seqloom.core.errors import DataError

MAX_MESSAGES = 10_000
MAX_TOOLS = 1_000
MAX_DEPTH = 32
"""Lists and objects inside one another."""
MAX_VALUES = 500_000
MAX_TEXT = 8 << 20
"""Characters of all messages and tools."""

PROBE = "\ufdd2\ufdd3"
"""Characters that no text may hold; where they come out of a template tells where a message went in."""
MARKS = ("\ufdd0", "\ufdd1")
"""Two more, which a template puts around what an assistant wrote."""

_REASONING = ("reasoning_content", "thinking", "reasoning")
"""What people call the thoughts of an assistant; templates read the first or the second."""
_KEYS = ("role", "content", "name", "tool_calls", "tool_call_id", *_REASONING)
_CALL_KEYS = {"id", "type", "index", "function", "name", "arguments"}
_FUNCTION_KEYS = {"name", "arguments"}
_MAX_INTEGER = 1 << 127
_FORBIDDEN = re.compile("[\ud800-\udfff\x1c-\x1f\ufdd0-\ufdd3]")


class Copier:
    """Copies values that consist of nothing but JSON, within limits that hold for all of them together."""

    def __init__(self) -> None:
        self._values, self._text = MAX_VALUES, MAX_TEXT
        self.odd_numbers: list[float] = []
        """Numbers that Python writes with an exponent."""

    def copy(self, value: Any, where: str, depth: int = 0) -> Any:
        """A copy of a value.

        Raises:
            DataError: it holds what is not JSON, or too much.
        """
        self._values -= 1
        if self._values < 0:
            raise DataError(f"{where}: messages and tools hold more than {MAX_VALUES:,} values")
        if depth > MAX_DEPTH:
            raise DataError(f"{where}: nested deeper than {MAX_DEPTH} levels")
        match value:
            case None | bool():
                return value
            case str():
                return self._copy_text(value, where)
            case int():
                if abs(value) >= _MAX_INTEGER:
                    raise DataError(f"{where}: a whole number of more than 127 bits")
                return int(value)
            case float():
                if not math.isfinite(value):
                    raise DataError(f"{where}: {value} is not a number of JSON")
                if "e" in repr(value):
                    self.odd_numbers.append(value)
                return float(value)
            case Mapping():
                if not all(isinstance(key, str) for key in value):
                    raise DataError(f"{where}: the keys of an object must be texts")
                return {
                    self._copy_text(key, where): self.copy(inner, f"{where}.{key}", depth + 1)
                    for key, inner in value.items()
                }
            case list() | tuple():
                return [self.copy(inner, f"{where}[{place}]", depth + 1) for place, inner in enumerate(value)]
        raise DataError(f"{where}: {type(value).__name__} is not a value of JSON")

    def _copy_text(self, text: str, where: str) -> str:
        self._text -= len(text)
        if self._text < 0:
            raise DataError(f"{where}: messages and tools hold more than {MAX_TEXT:,} characters")
        if found := _FORBIDDEN.search(text):
            raise DataError(
                f"{where}: character {found.start()} is U+{ord(found[0]):04X}; halves of characters, separators "
                "U+001C to U+001F and the marks U+FDD0 to U+FDD3 cannot go through a chat template"
            )
        return str(text)


def copy_messages(messages: Sequence[Mapping[str, Any]], copier: Copier) -> list[dict[str, Any]]:
    """Check messages and copy them.

    Raises:
        DataError: what is wrong in which message.
    """
    if not isinstance(messages, list | tuple):
        raise DataError(f"messages: expected a list of messages, got {type(messages).__name__}")
    if len(messages) > MAX_MESSAGES:
        raise DataError(f"messages: {len(messages):,} of them; at most {MAX_MESSAGES:,} are allowed")
    return [_message(message, f"messages[{place}]", copier) for place, message in enumerate(messages)]


def copy_tools(tools: Sequence[Mapping[str, Any]] | None, copier: Copier) -> list[dict[str, Any]] | None:
    """Check tools, given as JSON schemas, and copy them.

    Raises:
        DataError: what is wrong in which tool.
    """
    if tools is None:
        return None
    if not isinstance(tools, list | tuple) or not all(isinstance(tool, Mapping) for tool in tools):
        raise DataError("tools: expected a list of objects that describe functions")
    if len(tools) > MAX_TOOLS:
        raise DataError(f"tools: {len(tools):,} of them; at most {MAX_TOOLS:,} are allowed")
    return [copier.copy(tool, f"tools[{place}]") for place, tool in enumerate(tools)]


def _message(message: Any, where: str, copier: Copier) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise DataError(f"{where}: expected an object with role and content, got {type(message).__name__}")
    _check_keys(message, set(_KEYS), where)
    found: dict[str, Any] = copier.copy(message, where)
    for key in ("role", "name", "tool_call_id", *_REASONING):
        if not isinstance(found.get(key), str | None) or (key == "role" and not found.get(key)):
            raise DataError(f"{where}.{key}: expected a text, got {found.get(key)!r:.80}")
    if "content" in found:
        _check_content(found["content"], f"{where}.content")
    thoughts = next((found[key] for key in _REASONING if found.get(key) is not None), None)
    if thoughts is not None:
        found = {"thinking": thoughts, **found, "reasoning_content": thoughts}
    if found.get("tool_calls") is not None:
        found["tool_calls"] = _calls(found["tool_calls"], f"{where}.tool_calls", copier)
    if "content" not in found and not found.get("tool_calls") and thoughts is None:
        raise DataError(f"{where}: neither content nor tool_calls; its keys: {', '.join(found)}")
    return found


def _check_content(content: Any, where: str) -> None:
    if isinstance(content, str | None):
        return
    if not isinstance(content, list):
        raise DataError(f"{where}: expected a text, a list of parts or null, got {type(content).__name__}")
    for place, part in enumerate(content):
        if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            raise DataError(f'{where}[{place}]: expected {{"type": "text", "text": …}}, got {part!r:.80}')
        _check_keys(part, {"type", "text"}, f"{where}[{place}]")


def _calls(calls: Any, where: str, copier: Copier) -> list[dict[str, Any]]:
    if not isinstance(calls, list):
        raise DataError(f"{where}: expected a list, got {type(calls).__name__}")
    return [_call(call, f"{where}[{place}]", copier) for place, call in enumerate(calls)]


def _call(call: Any, where: str, copier: Copier) -> dict[str, Any]:
    """A call with its arguments as an object, whether they stand in it or in its `function`."""
    if not isinstance(call, dict):
        raise DataError(f"{where}: expected an object, got {type(call).__name__}")
    _check_keys(call, _CALL_KEYS, where)
    if "function" not in call:
        return _function(call, where, copier)
    if not isinstance(call["function"], dict):
        raise DataError(f"{where}.function: expected an object, got {type(call['function']).__name__}")
    _check_keys(call["function"], _FUNCTION_KEYS, f"{where}.function")
    return {**call, "function": _function(call["function"], f"{where}.function", copier)}


def _function(function: dict[str, Any], where: str, copier: Copier) -> dict[str, Any]:
    if not isinstance(function.get("name"), str):
        raise DataError(f"{where}.name: expected a text, got {function.get('name')!r:.80}")
    arguments = function.get("arguments", {})
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments) if arguments.strip() else {}
        except (ValueError, RecursionError) as error:
            raise DataError(f"{where}.arguments: not an object of JSON: {error}") from None
    if not isinstance(arguments, dict):
        raise DataError(f"{where}.arguments: expected an object, got {type(arguments).__name__}")
    return {**function, "arguments": copier.copy(arguments, f"{where}.arguments")}


def _check_keys(found: Mapping[str, Any], known: set[str], where: str) -> None:
    if unknown := [str(key) for key in found if key not in known]:
        raise DataError(f"{where}: unknown key {unknown[0]!r:.80}; known: {', '.join(sorted(known))}")
