import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seqloom.serve.tool_calls import CallDelta, ToolCallParser, form_of

PROPERTIES = {
    "text": {"type": "string"},
    "count": {"type": "integer"},
    "share": {"type": "number"},
    "flag": {"type": "boolean"},
    "rows": {"type": "array"},
    "options": {"type": "object"},
    "either": {"anyOf": [{"type": "integer"}, {"type": "string"}]},
    "maybe": {"type": ["number", "null"]},
    "choice": {"enum": [1, 2]},
    "anything": {},
}
TOOLS = [{"type": "function", "function": {"name": "act", "parameters": {"type": "object", "properties": PROPERTIES}}}]


def xml(name: str, *parameters: tuple[str, str]) -> str:
    inside = "".join(f"<parameter={key}>\n{value}\n</parameter>\n" for key, value in parameters)
    return f"<tool_call>\n<function={name}>\n{inside}</function>\n</tool_call>"


def as_json(name: str, arguments: object) -> str:
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments}, ensure_ascii=False)}\n</tool_call>"


def read(form: str, *pieces: str) -> tuple[list[tuple[str, str]], str]:
    """Calls by name and joined arguments, and the text between."""
    parser = ToolCallParser(form, TOOLS)
    out = [found for piece in pieces for found in parser.push(piece)] + parser.flush()
    deltas = [found for found in out if isinstance(found, CallDelta)]
    calls: dict[int, tuple[str, str]] = {}
    for delta in deltas:
        assert (delta.name is None) == (delta.index in calls), "the name comes first and once"
        name, arguments = calls.get(delta.index, (delta.name or "", ""))
        calls[delta.index] = (name, arguments + delta.arguments)
    assert list(calls) == list(range(len(calls)))
    return list(calls.values()), "".join(found for found in out if isinstance(found, str))


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("text", "3", "3"),
        ("text", 'a "b"\n\n\\n <c> </param </parameter', 'a "b"\n\n\\n <c> </param </parameter'),
        ("text", "\nspaced \n", "\nspaced \n"),
        ("text", "", ""),
        ("text", "日本 😀\t", "日本 😀\t"),
        ("count", "3", 3),
        ("count", " -3 ", -3),
        ("count", "3.5", "3.5"),
        ("count", "true", "true"),
        ("count", "three", "three"),
        ("share", "2.5e3", 2500.0),
        ("share", "NaN", "NaN"),
        ("flag", "True", True),
        ("flag", "false", False),
        ("flag", "yes", "yes"),
        ("rows", '[1, "a", [null]]', [1, "a", [None]]),
        ("rows", "[1,", "[1,"),
        ("rows", "[" * 100_000, "[" * 100_000),
        ("options", '{"a": {"b": "</x>"}}', {"a": {"b": "</x>"}}),
        ("either", "3", 3),
        ("either", "x", "x"),
        ("maybe", "null", None),
        ("choice", "2", 2),
        ("anything", "3", "3"),
        ("undeclared", "3", "3"),
    ],
)
def test_values_become_what_the_tool_declares(key: str, value: str, expected: object) -> None:
    ((_, arguments),), rest = read("xml", xml("act", (key, value)))
    assert rest == ""
    assert json.loads(arguments) == {key: expected}
    assert type(json.loads(arguments)[key]) is type(expected)


def test_large_numbers_keep_their_digits() -> None:
    calls, _ = read("xml", xml("act", ("share", "12345678901234567890.12345678901234567890")))
    assert calls == [("act", '{"share": 12345678901234567890.12345678901234567890}')]


TEXTS = st.text('ab"\\\n{}<>/é😀 p=', max_size=12)
LEAVES = st.none() | st.booleans() | st.integers() | TEXTS
VALUES = LEAVES | st.lists(LEAVES, max_size=2) | st.dictionaries(TEXTS, LEAVES, max_size=2)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.dictionaries(st.sampled_from(["text", "other"]), TEXTS), max_size=3), st.integers(0, 2**32))
def test_text_comes_through_however_it_is_cut_in_tags(arguments: list[dict[str, str]], seed: int) -> None:
    text = "\n".join(xml("act", *each.items()) for each in arguments)
    check(text, "xml", arguments, seed)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.dictionaries(TEXTS, VALUES, max_size=3), max_size=3), st.integers(0, 2**32))
def test_arguments_come_through_however_they_are_cut_in_json(arguments: list[dict], seed: int) -> None:
    text = "\n".join(as_json("act", each) for each in arguments)
    check(text, "json", arguments, seed)


def check(text: str, form: str, arguments: list[dict], seed: int) -> None:
    choose = random.Random(seed)
    pieces, rest = [], text
    while rest:
        size = choose.choice([1, 1, 2, 3, 8, 40])
        pieces.append(rest[:size])
        rest = rest[size:]
    calls, between = read(form, *pieces)
    assert [(name, json.loads(each)) for name, each in calls] == [("act", each) for each in arguments]
    assert between == "\n" * (len(arguments) - 1)
    assert read(form, text) == (calls, between)


def test_the_name_and_long_texts_do_not_wait_for_the_end() -> None:
    parser = ToolCallParser("xml", TOOLS)
    assert parser.push("<tool_call>\n<function=act>") == [CallDelta(0, "act", "")]
    assert parser.push("\n<parameter=text>\nfirst ") == [CallDelta(0, None, '{"text": "'), CallDelta(0, None, "first ")]
    assert parser.push("second</par") == [CallDelta(0, None, "second")]
    assert parser.push("ty\n") == [CallDelta(0, None, "</party")]
    parser = ToolCallParser("json", TOOLS)
    assert parser.push('<tool_call>{"name": "act", "arguments": {"te') == [
        CallDelta(0, "act", ""),
        CallDelta(0, None, '{"te'),
    ]


@pytest.mark.parametrize(
    "inside",
    [
        '{"arguments": {"a": 1}, "name": "act"}',
        '{"name": "act", "arguments": "{\\"a\\": 1}"}',
        '{"name": "act", "parameters": {"a": 1}}',
        '{"id": 7, "name": "act", "arguments": {"a": 1}}',
    ],
)
def test_other_spellings_of_json_calls_are_read(inside: str) -> None:
    calls, rest = read("json", f"<tool_call>{inside}</tool_call>")
    assert [(name, json.loads(arguments)) for name, arguments in calls] == [("act", {"a": 1})]
    assert rest == ""


def test_a_call_without_arguments() -> None:
    assert read("xml", xml("now")) == ([("now", "{}")], "")
    assert read("json", '<tool_call>{"name": "now"}</tool_call>') == ([("now", "{}")], "")


MALFORMED = [
    ("xml", "<tool_call>hello</tool_call>"),
    ("xml", "<tool_call>\n<function=>\n</function>\n</tool_call>"),
    ("xml", "<tool_call>\n<function=act>\njunk</function>\n</tool_call>"),
    ("xml", "<tool_call>\n<function=act>\n<parameter=text>\nx\n</function>\n</tool_call>"),
    ("xml", "<tool_call>\n<function=act>\n<parameter=text>\nx\n</parameter>\n</tool_call>"),
    ("xml", "<tool_call>\n<function=act>\n<parameter=text>\nx"),
    ("xml", "<tool_call>\n<function=act>\n</function>\nmore\n</tool_call>"),
    ("xml", "<tool_call>\n<function=act>\n</function>x\n</tool_call>"),
    ("xml", "<tool_call>\n<function=a ct>\n</function>\n</tool_call>"),
    ("xml", "<tool_call>"),
    ("xml", "<tool_ca"),
    ("json", "<tool_call>[]</tool_call>"),
    ("json", "<tool_call>\n</tool_call>"),
    ("json", '<tool_call>{"name": 3, "arguments": {}}</tool_call>'),
    ("json", '<tool_call>{"name": "act", "arguments": [1]}</tool_call>'),
    ("json", '<tool_call>{"name": "act", "arguments": {a: 1}}</tool_call>'),
    ("json", '<tool_call>{"name": "act", "arguments": {"a": NaN}}</tool_call>'),
    ("json", '<tool_call>{"name": "act", "arguments": {"a": 1}</tool_call>'),
    ("json", '<tool_call>{"name": "act", "arguments": {"a": 1}, "x": 2}</tool_call>'),
    ("json", '<tool_call>{"name": "act", "arguments": {"a": "1</tool_call>'),
    ("json", '<tool_call>{"name": "act", "arguments": ' + '{"a":' * 5_000 + "</tool_call>"),
]


@pytest.mark.parametrize(("form", "text"), MALFORMED, ids=range(len(MALFORMED)))
def test_what_is_no_call_comes_back_as_text(form: str, text: str) -> None:
    good = xml("act") if form == "xml" else as_json("act", {})
    calls, between = read(form, *("a" + good + text))
    assert between == "a" + text
    assert calls[0] == ("act", "{}")
    for _, arguments in calls[1:]:
        with pytest.raises((ValueError, RecursionError)):  # nobody can take it for a whole call
            json.loads(arguments)


def test_the_form_is_in_the_template() -> None:
    assert form_of("{{ '<tool_call>\\n<function=' + name }}") == "xml"
    assert form_of('<tool_call>\\n{"name": ') == "json"
    assert form_of("{{ messages }}") is None
