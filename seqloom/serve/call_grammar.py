"""Grammars of tool calls: of an answer that must be one, and of one that may hold some."""

import json
from collections.abc import Mapping
from typing import Any

from seqloom.core.errors import ConfigError
from seqloom.serve.call_forms import PARAMETER_END, Tools, json_types
from seqloom.serve.channels import MarkTokenizer
from seqloom.serve.config import JSON_SPACING, Grammar
from seqloom.serve.marks import TOOL_CLOSE, TOOL_OPEN
from seqloom.serve.tool_calls import Form


def required_call(form: Form, tools: Tools, tokenizer: MarkTokenizer) -> Grammar:
    """The grammar of an answer that calls one of these tools, once.

    Raises:
        ConfigError: there is no tool, or one without a name.
    """
    functions = [tool.get("function", tool) for tool in tools]
    if not functions or not all(isinstance(each.get("name"), str) and each["name"] for each in functions):
        raise ConfigError(f"tools: {len(functions)} of them cannot be called; needed is at least one, all with names")
    return _grammar("call", form, functions, tokenizer)


def offered_calls(form: Form, tools: Tools, tokenizer: MarkTokenizer) -> Grammar | None:
    """The grammar of a free text with calls of these tools, whose arguments keep to the schemas of those that are
    `strict`; None if no tool is, or if the tags are text like any other, which free text may hold too."""
    functions = [tool.get("function", tool) for tool in tools]
    tags_apart = all(len(tokenizer.encode(tag, specials=True)) == 1 for tag in (TOOL_OPEN, TOOL_CLOSE))
    if not tags_apart or not any(function.get("strict") for function in functions):
        return None
    known = [function if function.get("strict") else {"name": function["name"], "free": True} for function in functions]
    return _grammar("text (call text)*\ntext: /(?s:.*)/", form, known, tokenizer)


def _grammar(start: str, form: Form, functions: Tools, tokenizer: MarkTokenizer) -> Grammar:
    opening, closing = (_tag_rule(tag, tokenizer) for tag in (TOOL_OPEN, TOOL_CLOSE))
    calls = " | ".join(f"call{number}" for number in range(len(functions)))
    rules = [f"start: {start}", f'call: {opening} "\\n" ({calls}) "\\n" {closing}']
    for number, function in enumerate(functions):
        rules += (_xml_rules if form == "xml" else _json_rules)(f"call{number}", function)
    return Grammar(kind="lark", text="\n".join(rules) + "\n")


def _tag_rule(tag: str, tokenizer: MarkTokenizer) -> str:
    """A tag that is a token of its own is named by its id, for its spelling is then no text."""
    ids = tokenizer.encode(tag, specials=True)
    return f"<[{ids[0]}]>" if len(ids) == 1 else json.dumps(tag)


def _json_rules(rule: str, function: Mapping[str, Any]) -> list[str]:
    head = json.dumps(f'{{"name": {json.dumps(function["name"])}, "arguments": ')
    return [f'{rule}: {head} {rule}a "}}"', f"{rule}a: {_json(function.get('parameters') or {'type': 'object'})}"]


def _json(schema: Any) -> str:
    """JSON of a schema, which may also be a mere `true`."""
    return f"%json {json.dumps({'x-guidance': JSON_SPACING, **schema} if isinstance(schema, Mapping) else schema)}"


def _xml_rules(rule: str, function: Mapping[str, Any]) -> list[str]:
    """Parameters in the order of their declaration; those that are not required may be left out."""
    head = json.dumps(f"<function={function['name']}>\n")
    if function.get("free"):
        return [f"{rule}: {head} {rule}a", f'{rule}a[suffix="</function>"]: /(?s:.*)/']
    parameters = function.get("parameters") or {}
    required = parameters.get("required") or ()
    parts, rules = [], []
    for number, (key, schema) in enumerate((parameters.get("properties") or {}).items()):
        part = f"{rule}p{number}"
        parts.append(part if key in required else f"{part}?")
        rules.append(f"{part}: {json.dumps(f'<parameter={key}>' + chr(10))} {part}v")
        if json_types(schema) == {"string"}:
            rules.append(f'{part}v[suffix="\\n</parameter>\\n"]: /(?s:.*)/')
        else:
            rules[-1] += f' "\\n{PARAMETER_END}\\n"'
            rules.append(f"{part}v: {_json(schema)}")
    return [f'{rule}: {head} {" ".join(parts)} "</function>"', *rules]
