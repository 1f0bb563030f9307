import json
from functools import cache

import pytest
from serve.byte_tokens import ByteTokens
from serve.test_constraints import TOOLS, accepts

from seqloom.serve.call_grammar import offered_calls, required_call
from seqloom.serve.config import Grammar
from seqloom.serve.constraints import Grammars
from seqloom.serve.marks import TOOL_CLOSE, TOOL_OPEN
from seqloom.serve.tool_calls import CallDelta, ToolCallParser
from seqloom.serve.vocabulary import Vocabulary

pytest.importorskip("llguidance")
jsonschema_rs = pytest.importorskip("jsonschema_rs")

CALLS = {
    "xml": "{0}\n<function=first>\n<parameter=text>\na\n</parameter>\n<parameter=count>\n3\n</parameter>\n"
    "</function>\n{1}",
    "json": '{0}\n{{"name": "first", "arguments": {{"text": "a", "count": 3}}}}\n{1}',
}


PLAIN = ByteTokens()


@cache
def grammars_of(tokenizer: ByteTokens) -> Grammars:
    return Grammars(Vocabulary(tokenizer, tokenizer.size))


def can_be(grammar: Grammar, tokenizer: ByteTokens, text: str) -> bool:
    return accepts(grammars_of(tokenizer).matcher(grammar, [tokenizer.eos]), tokenizer, text)


@pytest.mark.parametrize("form", ["xml", "json"])
@pytest.mark.parametrize("tags", [(TOOL_OPEN, TOOL_CLOSE), ()], ids=["tokens", "text"])
def test_calls_of_strict_tools_keep_to_their_schemas_and_all_else_is_free(form: str, tags: tuple[str, ...]) -> None:
    tokenizer = ByteTokens(*tags)
    strict, free = [{**tool["function"], "strict": number == 0} for number, tool in enumerate(TOOLS)]
    grammar = offered_calls(form, [strict, free], tokenizer)
    call = CALLS[form].format(TOOL_OPEN, TOOL_CLOSE)
    in_place = offered_calls(form, [strict, free], tokenizer, Grammar(kind="json"))
    assert grammar is not None
    assert in_place is not None
    free_texts = ("", "Well, <b>\n\n3 > 2", f"First: {call}\n{call} done", "a <tool")
    calls = (call, call.replace("first", "second"), call.replace("first", "second").replace("3", '"x"'))
    for text in (*free_texts, *calls):
        assert can_be(grammar, tokenizer, text)
        assert can_be(in_place, tokenizer, text) == (text in calls)
    for text in (call.replace("3", '"x"'), call.replace("first", "third"), f"Well {TOOL_OPEN}x"):
        assert not can_be(grammar, tokenizer, text)
        assert not can_be(in_place, tokenizer, text)
    for text in ('{"a": [1]}', f"{call}\n{call}"):
        assert can_be(in_place, tokenizer, text)
    assert offered_calls(form, [free], tokenizer) is None
    assert offered_calls(form, [strict], tokenizer, Grammar(kind="regex", text="a")) is None


STEP = {
    "type": "object",
    "properties": {"n": {"type": "integer"}},
    "required": ["n"],
    "additionalProperties": False,
}
KEPT = {
    "colour": ({"$ref": "#/$defs/Colour"}, ["red", "a/b"], ["blue", "3"]),
    "step": ({"$ref": "#/$defs/Step"}, ['{"n": 1}', '{\n  "n": 1\n}'], ['{"n": "1"}', "text"]),
    "steps": ({"type": "array", "items": {"$ref": "#/$defs/Step"}}, ['[{"n": 1}]', "[]"], ["[1]"]),
    "maybe": ({"anyOf": [{"$ref": "#/$defs/Step"}, {"type": "null"}]}, ["null", '{"n":2}'], ["none"]),
    "self": ({"anyOf": [{"$ref": "#"}, {"type": "null"}]}, ['{"steps": [{"n": 1}]}', "null"], ['{"steps": 3}']),
    "url": ({"type": "string", "pattern": "^https?://"}, ["http://a/b"], ["ftp://a"]),
    "digit": ({"type": "string", "pattern": "[0-9]"}, ["a1b"], ["ab"]),
    "either": ({"type": "string", "pattern": "^(yes|no)$"}, ["yes", "no"], ["nope", "y"]),
    "date": (
        {"type": "string", "format": "date"},
        ["2024-02-29", "2000-12-31"],
        ["2023-02-29", "1900-02-29", "2024-04-31", "24-1-1"],
    ),
    "time": (
        {"type": "string", "format": "time"},
        ["23:59:59Z", "08:00:00.125-07:00"],
        ["24:00:00Z", "08:00:00", "8:00Z"],
    ),
    "moment": (
        {"type": "string", "format": "date-time"},
        ["2024-05-06T07:08:09+02:00"],
        ["2024-05-06 07:08", "2024-05-06"],
    ),
    "span": ({"type": "string", "format": "duration"}, ["P1Y2M3DT4H5M6S", "PT5M", "P2W"], ["P", "P1DT", "1D", "P1Y2D"]),
    "mail": (
        {"type": "string", "format": "email"},
        ["a.b+c@d-e.org", "x@y.z"],
        ["a@", "a..b@c.de", "a b@c.de", "a@-b.de"],
    ),
    "host": ({"type": "string", "format": "hostname"}, ["a-1.example", "localhost"], ["-a.b", "a..b", "a_b", "a/b"]),
    "four": ({"type": "string", "format": "ipv4"}, ["127.0.0.1", "255.255.255.0"], ["256.0.0.1", "1.2.3", "01.2.3.4"]),
    "six": (
        {"type": "string", "format": "ipv6"},
        ["::", "1::2:3:4:5:6:7", "fe80::1", "1:2:3:4:5:6:7:8"],
        ["1:2", "1::2::3", "12345::", "1:2:3:4:5:6::7:8"],
    ),
    "uuid": (
        {"type": "string", "format": "uuid"},
        ["0189f7e2-3b1c-7abc-8def-0123456789ab"],
        ["0189f7e2-3b1c-7abc-8def", "x"],
    ),
    "uri": (
        {"type": "string", "format": "uri"},
        ["https://me@a.org:80/b//c;d?e=%20#f", "mailto:a@b.c", "file:///a"],
        ["a/b", "http://a b", "http://a:b/", "http://a/%zz", "//a"],
    ),
    "short": ({"type": "string", "minLength": 2, "maxLength": 3}, ["ab", "a\nb"], ["a", "abcd"]),
}


@pytest.mark.parametrize("name", KEPT)
def test_values_in_tags_keep_to_what_their_schema_says(name: str) -> None:
    """As a validator has it; what may be written is read as what was meant."""
    colours = {"enum": ["red", "a/b"], "type": "string"}
    schemas = {name: schema for name, (schema, _, _) in KEPT.items()}
    root = {"type": "object", "properties": schemas, "$defs": {"Step": STEP, "Colour": colours}}
    root["additionalProperties"] = False
    tool = {"type": "function", "function": {"name": "act", "parameters": root}}
    grammar = required_call("xml", [tool], PLAIN)
    for value, good in [(value, True) for value in KEPT[name][1]] + [(value, False) for value in KEPT[name][2]]:
        call = f"<function=act>\n<parameter={name}>\n{value}\n</parameter>\n</function>"
        text = f"{TOOL_OPEN}\n{call}\n{TOOL_CLOSE}"
        assert can_be(grammar, PLAIN, text) == good
        deltas = [found for found in ToolCallParser("xml", [tool]).push(text) if isinstance(found, CallDelta)]
        arguments = json.loads("".join(delta.arguments for delta in deltas))
        assert jsonschema_rs.is_valid(root, arguments, validate_formats=True) == good


@pytest.mark.parametrize(
    "parameters",
    [
        {"properties": 5},
        {"properties": {"a": {"anyOf": 5, "enum": 3}}, "required": 7},
        {"properties": {"a": {"$ref": "#/$defs/A"}}, "$defs": {"A": {"$ref": "#/$defs/A"}}},
        {"properties": {"a": {"$ref": "http://x"}, "b": 3}},
        {"properties": {"a": {"type": "string", "format": "unheard-of"}}},
    ],
)
def test_schemas_that_say_nothing_are_texts(parameters: dict[str, object]) -> None:
    tool = {"function": {"name": "act", "parameters": parameters}}
    assert required_call("xml", [tool], ByteTokens()).kind == "lark"
    call = f"{TOOL_OPEN}\n<function=act>\n<parameter=a>\n3\n</parameter>\n</function>\n{TOOL_CLOSE}"
    assert ToolCallParser("xml", [tool]).push(call)[1] == CallDelta(0, None, '{"a": "')
