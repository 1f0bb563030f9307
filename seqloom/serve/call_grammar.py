"""Grammars of tool calls: of an answer that must be one, and of one that may hold some.

    required   one call, and nothing else
    offered    free text with calls between · or an answer of some form, and calls in its place

A call begins where its opening tag is complete, be that tag a token of its own or text like any other. Its arguments
keep to the schema of the tool; those of tools that are merely offered, and not strict, are free.
"""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from seqloom.core.errors import ConfigError
from seqloom.serve.call_formats import FORMATS
from seqloom.serve.call_forms import PARAMETER_END
from seqloom.serve.call_types import Tools, json_types, properties, resolved
from seqloom.serve.channels import MarkTokenizer
from seqloom.serve.config import JSON_SPACING, Grammar
from seqloom.serve.marks import TOOL_CLOSE, TOOL_OPEN
from seqloom.serve.tool_calls import Form

_ANY = "(?s:.*)"


def required_call(form: Form, tools: Tools, tokenizer: MarkTokenizer) -> Grammar:
    """The grammar of an answer that calls one of these tools, once.

    Raises:
        ConfigError: there is no tool, or one without a name.
    """
    functions = [tool.get("function", tool) for tool in tools]
    if not functions or not all(isinstance(each.get("name"), str) and each["name"] for each in functions):
        raise ConfigError(f"tools: {len(functions)} of them cannot be called; needed is at least one, all with names")
    return _grammar(["start: call"], form, functions, tokenizer)


def offered_calls(form: Form, tools: Tools, tokenizer: MarkTokenizer, answer: Grammar | None = None) -> Grammar | None:
    """The grammar of an answer that may call these tools; None if that needs none beside the one of the answer.

    Args:
        answer: the form of what is no call; None if it is free.
    """
    functions = [tool.get("function", tool) for tool in tools]
    known = [function if function.get("strict") else {"name": function["name"], "free": True} for function in functions]
    if answer is None and all("free" in function for function in known):
        return None
    if answer is None:
        return _grammar(_between_text(tokenizer), form, known, tokenizer)
    if answer.kind not in ("json", "json_schema"):
        return None
    schema = json.loads(answer.text) if answer.text else {"type": "object"}
    return _grammar(['start: answer | call ("\\n"? call)*', f"answer: {_json(schema)}"], form, known, tokenizer)


def _between_text(tokenizer: MarkTokenizer) -> list[str]:
    """Free text, which a tag that is a token of its own cannot be part of, and any other ends."""
    if len(tokenizer.encode(TOOL_OPEN, specials=True)) == 1:
        return ["start: text (call text)*", f"text: /{_ANY}/"]
    return [
        "start: (before inside)* after?",
        f"before[lazy]: /{_ANY}{TOOL_OPEN}/",
        "after: AFTER",
        f"AFTER: /{_ANY}/ & ~/{_ANY}{TOOL_OPEN}{_ANY}/",
    ]


def _grammar(rules: list[str], form: Form, functions: Tools, tokenizer: MarkTokenizer) -> Grammar:
    opening, closing = (_tag_rule(tag, tokenizer) for tag in (TOOL_OPEN, TOOL_CLOSE))
    calls = " | ".join(f"call{number}" for number in range(len(functions)))
    rules = [*rules, f"call: {opening} inside", f'inside: "\\n" ({calls}) "\\n" {closing}']
    for number, function in enumerate(functions):
        rules += (_xml_rules if form == "xml" else _json_rules)(f"call{number}", function)
    return Grammar(kind="lark", text="\n".join(rules) + "\n")


def _tag_rule(tag: str, tokenizer: MarkTokenizer) -> str:
    """A tag that is a token of its own is named by its id, for its spelling is then no text."""
    ids = tokenizer.encode(tag, specials=True)
    return f"<[{ids[0]}]>" if len(ids) == 1 else json.dumps(tag)


def _json_rules(rule: str, function: Mapping[str, Any]) -> Iterator[str]:
    head = json.dumps(f'{{"name": {json.dumps(function["name"])}, "arguments": ')
    yield f'{rule}: {head} {rule}a "}}"'
    yield f"{rule}a: {_json(function.get('parameters') or {'type': 'object'})}"


def _json(schema: Any) -> str:
    """JSON of a schema, which may also be a mere `true`."""
    return f"%json {json.dumps({'x-guidance': JSON_SPACING, **schema} if isinstance(schema, Mapping) else schema)}"


def _xml_rules(rule: str, function: Mapping[str, Any]) -> Iterator[str]:
    """Parameters in the order of their declaration; those that are not required may be left out."""
    head = json.dumps(f"<function={function['name']}>\n")
    if function.get("free"):
        yield f"{rule}: {head} {rule}a"
        yield f'{rule}a[suffix="</function>"]: /{_ANY}/'
        return
    root = function.get("parameters") or {}
    required = root.get("required")
    parts = []
    for number, (key, schema) in enumerate(properties(root).items()):
        part = f"{rule}p{number}"
        parts.append(part if isinstance(required, list) and key in required else f"{part}?")
        yield f"{part}: {json.dumps(f'<parameter={key}>' + chr(10))} {part}v"
        yield from _value_rules(f"{part}v", key, schema, root)
    yield f'{rule}: {head} {" ".join(parts)} "</function>"'


def _value_rules(rule: str, key: str, schema: Any, root: Mapping[str, Any]) -> Iterator[str]:
    """A value and the tag after it: JSON, or a text as it is."""
    end = json.dumps(f"\n{PARAMETER_END}\n")
    if json_types(schema, root) != {"string"}:
        yield f"{rule}: {rule}j {end}"
        yield f"{rule}j: {_json(_alone(key, schema, root))}"
        return
    schema = resolved(schema, root)
    schema = schema if isinstance(schema, Mapping) else {}
    values = schema.get("enum", [schema["const"]] if "const" in schema else None)
    if isinstance(values, list) and values and all(isinstance(value, str) for value in values):
        yield f"{rule}: ({' | '.join(map(json.dumps, values))}) {end}"
    else:
        yield f"{rule}[suffix={end}]: {' & '.join(_expressions(schema))}"


def _expressions(schema: Mapping[str, Any]) -> Iterator[str]:
    """Regular expressions of a text; a format that is not known says nothing, as JSON Schema has it."""
    least, most = (schema.get(name) for name in ("minLength", "maxLength"))
    if isinstance(least, int) or isinstance(most, int):
        yield f"/(?s:.{{{least or 0},{'' if most is None else most}}})/"
    else:
        yield f"/{_ANY}/"
    if isinstance(pattern := schema.get("pattern"), str):
        yield f"/{_anywhere(pattern)}/"
    if isinstance(form := schema.get("format"), str) and form in FORMATS:
        yield f"/{_escaped(FORMATS[form])}/"


def _anywhere(pattern: str) -> str:
    """An expression of the texts that a pattern is found in. Where only some of several branches are bound to the
    beginning or end it is one of the texts that are the pattern: fewer, and all of them allowed."""
    escaped = _escaped(pattern)
    if "|" in pattern and re.search(r"[\^$]", pattern):
        return escaped
    before = "" if pattern.startswith("^") else _ANY
    after = "" if pattern.endswith("$") and not pattern.endswith("\\$") else _ANY
    return f"{before}(?:{escaped}){after}"


def _escaped(expression: str) -> str:
    """An expression as it stands between slashes."""
    return re.sub(r"(?<!\\)/", r"\\/", expression).replace("\n", r"\n")


def _alone(key: str, schema: Any, root: Mapping[str, Any]) -> Any:
    """The schema of a property outside of the one that its references begin in."""
    if '"$ref"' not in json.dumps(schema):
        return schema
    place = key.replace("~", "~0").replace("/", "~1")
    return {"$ref": f"#/$defs/root/properties/{place}", "$defs": {"root": _moved(root)}}


def _moved(schema: Any) -> Any:
    """A schema with its references, as part of another under `$defs/root`."""
    if isinstance(schema, list):
        return [_moved(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    moved = {key: _moved(value) for key, value in schema.items()}
    if isinstance(place := schema.get("$ref"), str) and place.startswith("#"):
        moved["$ref"] = "#/$defs/root" + place[1:]
    return moved
