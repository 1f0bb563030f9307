import json

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


def can_be(grammar: Grammar, tokenizer: ByteTokens, text: str) -> bool:
    grammars = Grammars(Vocabulary(tokenizer, tokenizer.size))
    return accepts(grammars.matcher(grammar, [tokenizer.eos]), tokenizer, text)


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
    tokenizer = ByteTokens()
    grammar = required_call("xml", [tool], tokenizer)
    for value, good in [(value, True) for value in KEPT[name][1]] + [(value, False) for value in KEPT[name][2]]:
        call = f"<function=act>\n<parameter={name}>\n{value}\n</parameter>\n</function>"
        text = f"{TOOL_OPEN}\n{call}\n{TOOL_CLOSE}"
        assert can_be(grammar, tokenizer, text) == good
        deltas = [found for found in ToolCallParser("xml", [tool]).push(text) if isinstance(found, CallDelta)]
        arguments = json.loads("".join(delta.arguments for delta in deltas))
        assert jsonschema_rs.is_valid(root, arguments) == good


@pytest.mark.parametrize(
    "parameters",
    [
        {"properties": 5},
        {"properties": {"a": {"anyOf": 5, "enum": 3}}, "required": 7},
        {"properties": {"a": {"$ref": "#/$defs/A"}}, "$defs": {"A": {"$ref": "#/$defs/A"}}},
        {"properties": {"a": {"$ref": "http://x"}, "b": 3}},
    ],
)
def test_schemas_that_say_nothing_are_texts(parameters: dict[str, object]) -> None:
    tool = {"function": {"name": "act", "parameters": parameters}}
    assert required_call("xml", [tool], ByteTokens()).kind == "lark"
    call = f"{TOOL_OPEN}\n<function=act>\n<parameter=a>\n3\n</parameter>\n</function>\n{TOOL_CLOSE}"
    assert ToolCallParser("xml", [tool]).push(call)[1] == CallDelta(0, None, '{"a": "')
