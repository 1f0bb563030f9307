"""Nothing that a request asks for is lost on its way to the engine."""

import json

import pytest

from seqloom.serve.http.answers import Choice
from seqloom.serve.http.chat import prepare_chat
from seqloom.serve.http.errors import RefusedError
from seqloom.serve.http.model import ServedModel
from seqloom.serve.http.prepared import Defaults
from seqloom.serve.http.protocol import ChatBody
from seqloom.serve.tool_calls import ToolCallParser

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
TOOL = {"type": "function", "function": {"name": "look_up", "parameters": SCHEMA}}
NAMED = {"type": "function", "function": {"name": "look_up"}}
ALLOWED = {"mode": "required", "tools": [NAMED]}


@pytest.fixture(scope="module")
def model(folder):
    return ServedModel(folder, "fake")


def prepared(model, **fields):
    body = ChatBody.model_validate_json(json.dumps({"messages": [{"role": "user", "content": "hi"}], **fields}))
    defaults = Defaults(draft_tokens=3, answer_tokens=50, thinking_tokens=None)
    return prepare_chat(body, model, 1000, defaults)


@pytest.mark.parametrize(
    ("fields", "kind"),
    [
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA}}}, "json_schema"),
        ({"response_format": {"type": "json_object"}}, "json"),
        ({"structured_outputs": {"regex": "a+"}}, "regex"),
        ({"structured_outputs": {"choice": ["yes", 'n"o']}}, "lark"),
        ({"tools": [TOOL], "tool_choice": "required"}, "lark"),
        ({"tools": [TOOL], "tool_choice": NAMED}, "lark"),
        ({"tools": [TOOL], "tool_choice": {"type": "allowed_tools", "allowed_tools": ALLOWED}}, "lark"),
        ({"tools": [TOOL], "response_format": {"type": "json_object"}}, "lark"),
        ({"tools": [TOOL], "response_format": {"type": "json_object"}, "tool_choice": "required"}, "lark"),
    ],
)
def test_the_form_of_an_answer(model, fields, kind):
    assert prepared(model, **fields).requests[0]["sampling"]["grammar"]["kind"] == kind


def test_every_setting(model):
    asked = {
        "temperature": 0.5, "top_p": 0.9, "top_k": 7, "min_p": 0.1, "frequency_penalty": 1.5, "presence_penalty": -1.0,
        "repetition_penalty": 1.2, "min_tokens": 2, "ignore_eos": True, "max_tokens": 9, "thinking_tokens": 5,
    }  # fmt: skip
    more = {"seed": -1, "n": 2, "stop": "x", "stop_token_ids": [9], "logit_bias": {"8": 2}, "logprobs": True}
    first, second = (request["sampling"] for request in prepared(model, **asked, **more).requests)
    assert {name: first[name] for name in asked} == asked
    assert (first["seed"], second["seed"]) == ((1 << 64) - 1, 0)
    assert (first["stop"], first["logit_bias"], first["logprobs"]) == (("x",), ((8, 2.0),), 0)
    assert first["stop_token_ids"] == (model.tokenizer.answer_end, 9)


@pytest.mark.parametrize(
    ("fields", "starts", "budget"),
    [
        ({}, True, None),
        ({"thinking_tokens": 0}, False, 0),
        ({"max_thinking_tokens": 7}, True, 7),
        ({"reasoning_effort": "none"}, False, 0),
        ({"reasoning_effort": "low"}, True, 1024),
        ({"chat_template_kwargs": {"enable_thinking": False}}, False, None),
    ],
)
def test_thinking(model, fields, starts, budget):
    (request,) = prepared(model, **fields).requests
    assert request["marks"]["starts_thinking"] is starts
    assert request["sampling"]["thinking_tokens"] == budget


@pytest.mark.parametrize(("arguments", "finish"), [('{"a": 1}', "tool_calls"), ('{"a": ', "stop")])
def test_a_call_that_breaks_off_is_no_call(arguments, finish):
    text = f'<tool_call>\n{{"name": "look_up", "arguments": {arguments}}}\n</tool_call>'
    choice = Choice(ToolCallParser("json", [TOOL]))
    for _ in choice.feed({"id": 0, "pieces": [("tool", text)], "tokens": [5], "finish": "eos"}):
        pass
    message = choice.message()
    assert choice.finish == finish
    assert ("tool_calls" in message) == (finish == "tool_calls")
    assert message["content"] == (None if finish == "tool_calls" else text)


def test_what_cannot_both_be(model):
    form = {"response_format": {"type": "json_object"}}
    with pytest.raises(RefusedError):
        prepared(model, **form, structured_outputs={"regex": "a"})
    with pytest.raises(RefusedError, match="together"):
        prepared(model, max_tokens=1000)
