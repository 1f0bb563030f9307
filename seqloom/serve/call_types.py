"""Which JSON types the parameters of a tool have, as far as its schema says so.

References inside the schema (`{"$ref": "#/$defs/Step"}`) are followed, since every schema that pydantic makes of nested
classes or enumerations has some. Each is followed once, so that one which leads back to itself ends. Schemas come from
strangers: what is not formed as it should be says nothing.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

Tools = Sequence[Mapping[str, Any]]
"""Declarations as at OpenAI: {"type": "function", "function": {"name", "parameters"}}, or the function alone."""

_KINDS: dict[str, Any] = {
    "integer": int,
    "number": (int, float),
    "boolean": bool,
    "null": type(None),
    "object": dict,
    "array": list,
}


def declared(tools: Tools, name: str) -> dict[str, set[str]]:
    """The JSON types of a tool's parameters; those that are not declared may be missing."""
    for tool in tools:
        function = tool.get("function", tool)
        if function.get("name") == name:
            root = function.get("parameters")
            return {key: json_types(schema, root) for key, schema in properties(root).items()}
    return {}


def properties(schema: Any) -> Mapping[str, Any]:
    """The properties of an object's schema."""
    found = schema.get("properties") if isinstance(schema, Mapping) else None
    return found if isinstance(found, Mapping) else {}


def json_types(schema: Any, root: Any) -> set[str]:
    """The JSON types that a schema allows; a text where it says nothing.

    Args:
        root: the schema that references begin in.
    """
    return _types(schema, root, set()) or {"string"}


def resolved(schema: Any, root: Any, seen: set[str] | None = None) -> Any:
    """A schema, or the one that it refers to; None if there is none, or if it was seen before."""
    seen = set() if seen is None else seen
    while isinstance(schema, Mapping) and isinstance(place := schema.get("$ref"), str):
        if place in seen or not place.startswith("#"):
            return None
        seen.add(place)
        schema = root
        for key in place.split("/")[1:]:
            schema = schema.get(key.replace("~1", "/").replace("~0", "~")) if isinstance(schema, Mapping) else None
    return schema


def as_json(text: str, types: set[str]) -> str:
    """The JSON of a value of one of these types that is written as plain text."""
    plain = text.strip()
    if "boolean" in types and plain.lower() in ("true", "false"):
        return plain.lower()
    try:
        value = read_json(plain)
    except (ValueError, RecursionError):
        value = text
    if any(kind in types and _is(value, kind) for kind in _KINDS):
        return plain  # as it was written: no digit of a number is lost
    return json.dumps(text, ensure_ascii=False)


def read_json(text: str) -> Any:
    """JSON as the standard has it.

    Raises:
        ValueError, RecursionError: it is none, or nested too deep.
    """
    return json.loads(text, parse_constant=_no_number)


def _types(schema: Any, root: Any, seen: set[str]) -> set[str]:
    schema = resolved(schema, root, seen)
    if not isinstance(schema, Mapping):
        return set()
    if isinstance(kind := schema.get("type"), str):
        return {kind}
    if isinstance(kind, list):
        return {each for each in kind if isinstance(each, str)}
    values = [*_listed(schema.get("enum")), *([schema["const"]] if "const" in schema else [])]
    found = {next((kind for kind in _KINDS if _is(value, kind)), "string") for value in values}
    for key in ("anyOf", "oneOf", "allOf"):
        for choice in _listed(schema.get(key)):
            found |= _types(choice, root, seen)
    return found


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _is(value: Any, kind: str) -> bool:
    """Whether a value is of a JSON type; in Python, booleans are numbers."""
    return isinstance(value, _KINDS[kind]) and isinstance(value, bool) == (kind == "boolean")


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")
