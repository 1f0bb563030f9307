"""What is a message and what is not."""

from typing import Any

import pytest

from seqloom.core.errors import DataError
from seqloom.data import messages as room
from seqloom.data.messages import Copier, copy_messages, copy_tools

USER = {"role": "user", "content": "hi"}


def copied(*messages: Any) -> list[dict[str, Any]]:
    return copy_messages(messages, Copier())


def test_arguments_become_objects_wherever_they_stand() -> None:
    calls = [
        {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"a": [1, {"b": null}]}'}},
        {"function": {"name": "f", "arguments": {"a": 1}}},
        {"name": "f", "arguments": " "},
        {"name": "f"},
    ]
    (message,) = copied({"role": "assistant", "content": None, "tool_calls": calls})
    first, second, third, fourth = message["tool_calls"]
    assert first == {**calls[0], "function": {"name": "f", "arguments": {"a": [1, {"b": None}]}}}
    assert second == calls[1]
    assert third == fourth == {"name": "f", "arguments": {}}


def test_thoughts_have_one_name() -> None:
    for key in ("reasoning_content", "reasoning", "thinking"):
        (message,) = copied({"role": "assistant", "content": "a", key: "why"})
        assert message["reasoning_content"] == message["thinking"] == "why"
    (message,) = copied({"role": "assistant", "content": "a", "reasoning_content": None})
    assert "thinking" not in message


WRONG = [
    ("x", r"messages\[0\]: expected an object"),
    ({"content": "a"}, r"messages\[0\].role: expected a text, got None"),
    ({"role": "", "content": "a"}, r"role: expected a text, got ''"),
    ({"role": 1, "content": "a"}, r"role: expected a text, got 1"),
    ({"role": "user"}, r"messages\[0\]: neither content nor tool_calls; its keys: role"),
    ({"role": "user", "content": 1}, r"content: expected a text, a list of parts or null, got int"),
    ({"role": "user", "content": {"a": 1}}, r"content: expected .* got dict"),
    ({"role": "user", "content": ["a"]}, r'content\[0\]: expected {"type": "text"'),
    ({"role": "user", "content": [{"type": "image_url", "image_url": {}}]}, r"content\[0\]: expected"),
    ({"role": "user", "content": [{"type": "text", "text": "a", "x": 1}]}, r"unknown key 'x'; known: text, type"),
    ({"role": "user", "content": "a", "wieght": 1}, r"unknown key 'wieght'; known: content, name"),
    ({"role": "user", "content": "a", "name": 1}, r"name: expected a text, got 1"),
    ({"role": "assistant", "content": "a", "reasoning_content": []}, r"reasoning_content: expected a text"),
    ({"role": "assistant", "tool_calls": "x"}, r"tool_calls: expected a list, got str"),
    ({"role": "assistant", "tool_calls": ["x"]}, r"tool_calls\[0\]: expected an object"),
    ({"role": "assistant", "tool_calls": [{"function": "f"}]}, r"function: expected an object, got str"),
    ({"role": "assistant", "tool_calls": [{"function": {"arguments": {}}}]}, r"function.name: expected a text"),
    ({"role": "assistant", "tool_calls": [{"name": "f", "arguments": "{"}]}, r"arguments: not an object of JSON"),
    (
        {"role": "assistant", "tool_calls": [{"name": "f", "arguments": "[]"}]},
        r"arguments: expected an object, got list",
    ),
    ({"role": "assistant", "tool_calls": [{"name": "f", "arguments": "[" * 9999}]}, r"arguments: "),
    ({"role": "assistant", "tool_calls": [{"name": "f", "x": 1}]}, r"tool_calls\[0\]: unknown key 'x'"),
    ({"role": "user", "content": "a\ud800"}, r"content: character 1 is U\+D800"),
    ({"role": "user", "content": "\x1d"}, r"character 0 is U\+001D"),
    ({"role": "user", "content": "\ufdd2"}, r"character 0 is U\+FDD2"),
    ({"role": "user", "content": b"a"}, r"content: bytes is not a value of JSON"),
]


@pytest.mark.parametrize(("message", "words"), WRONG)
def test_what_is_wrong_is_named_with_its_place(message: Any, words: str) -> None:
    with pytest.raises(DataError, match=words):
        copied(message)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (float("nan"), "nan is not a number of JSON"),
        (2**127, "more than 127 bits"),
        ({1: 2}, "keys of an object must be texts"),
        ({1, 2}, "set is not a value of JSON"),
    ],
)
def test_tools_are_json(value: Any, words: str) -> None:
    with pytest.raises(DataError, match=rf"tools\[0\].x: .*{words}"):
        copy_tools([{"x": value}], Copier())
    with pytest.raises(DataError, match="expected a list of objects"):
        copy_tools([{}, [value]], Copier())  # type: ignore[list-item]


def test_there_is_a_limit_to_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    deep: Any = "x"
    for _ in range(room.MAX_DEPTH + 1):
        deep = [deep]
    with pytest.raises(DataError, match="nested deeper than 32 levels"):
        copy_tools([{"x": deep}], Copier())
    with pytest.raises(DataError, match="10,001 of them; at most 10,000"):
        copied(*[USER] * 10_001)
    with pytest.raises(DataError, match="1,001 of them; at most 1,000"):
        copy_tools([{}] * 1_001, Copier())
    with pytest.raises(DataError, match=r"messages\[1\].content: .* more than 8,388,608 characters"):
        copied(USER, {"role": "user", "content": "x" * room.MAX_TEXT})
    with pytest.raises(DataError, match="more than 500,000 values"):
        copy_tools([{"x": [0] * room.MAX_VALUES}], Copier())
    with pytest.raises(DataError, match="expected a list of messages, got dict"):
        copy_messages(USER, Copier())  # type: ignore[arg-type]
