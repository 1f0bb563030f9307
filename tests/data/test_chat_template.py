"""Rendering equals jinja2's sandbox as `transformers` sets it up, or is refused with a reason."""

from datetime import datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chat_corpus import CORPUS, FOLDER, NAMES, TOOLS, conversations, open_template, ours, theirs
from seqloom.core.errors import DataError
from seqloom.data.chat_template import ChatTemplate

ASK = [{"role": "user", "content": "hi"}]
CALL = {"id": "abcdefghi", "type": "function", "function": {"name": "look_up", "arguments": {"a": 1.0, "b": [None]}}}
LONG = [
    {"role": "system", "content": "Be /no_think brief."},
    {"role": "user", "content": "first"},
    {"role": "assistant", "content": "", "reasoning_content": "I look it up", "tool_calls": [CALL]},
    {"role": "tool", "content": "42", "tool_call_id": "abcdefghi", "name": "look_up"},
    {"role": "tool", "content": "43", "tool_call_id": "abcdefghi", "name": "look_up"},
    {"role": "assistant", "content": "it is 42", "reasoning_content": "it says so"},
    {"role": "user", "content": " second "},
    {"role": "assistant", "content": "<think>\nhm\n</think>\n\nyes"},
]
PLAIN = [message for message in LONG if message["role"] != "tool" and "tool_calls" not in message]
PARTS = [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]


@pytest.mark.parametrize("name", CORPUS)
def test_every_shape_renders_as_jinja2_does(name: str) -> None:
    template = open_template(name)
    switches = [{}, *({option: value} for option in template.options for value in (True, False, "low"))]
    rendered = 0
    for messages in (ASK, LONG, PLAIN, PARTS, LONG[:6], []):
        for tools in (None, TOOLS):
            for prompt in (False, True):
                for options in switches if messages is LONG else switches[:1]:
                    given = {"tools": tools, "add_generation_prompt": prompt, "options": options}
                    expected = theirs(template.source, messages, **given)
                    assert ours(template, messages, **given) == expected
                    rendered += expected is not None
    assert rendered >= 8


@pytest.mark.parametrize("name", CORPUS)
@settings(max_examples=15, deadline=None)
@given(messages=conversations(), tools=st.sampled_from([None, TOOLS]), prompt=st.booleans())
def test_any_conversation_renders_as_jinja2_does(name: str, messages: Any, tools: Any, prompt: bool) -> None:
    template = open_template(name)
    found = ours(template, messages, tools=tools, add_generation_prompt=prompt)
    expected = theirs(template.source, messages, tools, prompt)
    assert found == expected


@pytest.mark.parametrize("source", (FOLDER / "language.txt").read_text(encoding="utf-8").splitlines())
def test_every_word_of_the_language_means_what_it_means_to_jinja2(source: str) -> None:
    source = source.replace("⏎", "\n")
    messages = [*ASK, {"role": "assistant", "content": "yo"}]
    expected = theirs(source, messages)
    assert expected is not None
    assert ChatTemplate(source, NAMES).render(messages) == expected


def test_line_ends_are_those_of_the_template_and_not_of_its_author() -> None:
    source = "{% if true %}\r\na\r\n{% endif %}\rb{{ messages[0].content }}\r\n"
    messages = [{"role": "user", "content": "x\r\ny"}]
    assert ChatTemplate(source, NAMES).render(messages) == theirs(source, messages) == "a\nbx\r\ny"


REFUSED = {
    "{% include 'a' %}": "line 1: the tag 'include' is not known here; known: break",
    "{% import 'a' as b %}": "the tag 'import'",
    "{% extends 'a' %}": "the tag 'extends'",
    "{% block a %}{% endblock %}": "the tag 'block'",
    "{% do messages.append(1) %}": "the tag 'do'",
    "\n\n{{ ''.__class__ }}": "line 3: the name '__class__'",
    "{{ ''['__class__'] }}": "'__class__' is an inside of Python",
    "{{ ''|attr('__class__') }}": "the filter 'attr'",
    "{{ messages.append(1) }}": "the method 'append'",
    "{{ messages[0]['pop']('role') }}": "only what has a name can be called",
    "{% set f = messages[0].pop %}{{ f('role') }}": "'.pop' without a call",
    "{{ tools[0].items }}": r"write \['items'\]",
    "{{ lipsum() }}": "the name 'lipsum'",
    "{{ self }}": "the name 'self'",
    "{% macro m() %}{{ varargs }}{% endmacro %}": "the name 'varargs'",
    "{{ 'a,b'|split(',') }}": "the filter 'split'",
    "{{ 'a b'|wordcount }}": "the filter 'wordcount'",
    "{% filter e %}{% endfilter %}": "the filter 'e'",
    "{{ messages is callable }}": "the test 'callable'",
    "{{ messages is not callable }}": "the test 'callable'",
    "{{ 'a-b'.partition('-') }}": "the method 'partition'",
    "{{ '{}'.format(1) }}": "the method 'format'",
    "{{ '%s' % 1 }}": "the filter 'format' does the same",
    "{{ 1e-7 }}": "the number 1e-7",
    "{{ 0.00001 }}": "the number 0.00001",
    "{{ messages|map('tojson')|list }}": "the filter inside of 'map' 'tojson'",
    "{{ messages|selectattr('content', 'iterable')|list }}": "the test inside of 'selectattr' 'iterable'",
    "{% if messages|selectattr('x') %}{% endif %}": "the filter 'selectattr' needs another after it",
    "{{ (x|safe) + 'y' }}": "'safe' beside a",
    "{{ +3 }}": "syntax error|unexpected",
    "{{ 1": "'{{' without an end",
    "{% if x": "'{%' without an end",
    "{# x": "a comment without an end",
    "{% raw %}x": "'raw' without 'endraw'",
    "{% if x %}": "unexpected end of input",
    "{{ seqloom_start }}": "the name 'seqloom_start'",
    "a" * 200_000: "200,000 characters; at most 131,072",
}


@pytest.mark.parametrize("source", REFUSED)
def test_what_jinja2_would_render_otherwise_is_refused_before_anything_is_rendered(source: str) -> None:
    with pytest.raises(DataError, match=REFUSED[source]):
        ChatTemplate(source, NAMES)


FAILING = {
    "{{ raise_exception('Roles must ' ~ 'alternate') }}": "refuses this conversation: Roles must alternate$",
    "{% generation %}\n{{ missing.x }}{% endgeneration %}": "cannot be rendered: line 2: ",
    "\n\n{{ missing.x }}": "cannot be rendered: line 3: `missing` is undefined",
    "{% for x in tools %}{% endfor %}": "a loop over None, which holds nothing",
    "{{ missing|tojson }}": "tojson: the value does not exist",
    "{{ strftime_now('%9999d') }}": "'%9999d' is not a form of a date",
    "{{ messages|tojson(indent=1000) }}": "an indentation of more than 64",
    "{{ messages.strip() }}": "'list' object has no attribute 'strip'",
    "{{ 'x'|int }}": "invalid float",
}


@pytest.mark.parametrize("source", FAILING)
def test_what_goes_wrong_is_said_in_words_of_the_template_or_with_its_line(source: str) -> None:
    if not any(word in source for word in ("'x'|int", "%9999d", "indent=1000")):  # here we are stricter
        assert theirs(source, ASK) is None
    with pytest.raises(DataError, match=FAILING[source]):
        ChatTemplate(source, NAMES).render(ASK)


def test_the_options_are_those_that_the_template_reads() -> None:
    assert {name: list(open_template(name).options) for name in CORPUS if open_template(name).options} == {
        "channels": ["reasoning_effort"],
        "command_r": ["citation_mode", "documents"],
        "llama_3_tools": ["custom_tools", "date_string", "tools_in_user_message"],
        "mistral_instruct": ["system_message"],
        "nemotron_3": ["enable_thinking", "medium_effort", "reasoning_budget", "truncate_history_thinking"],
        "qwen_3": ["enable_thinking"],
    }
    template = open_template("nemotron_3")
    on, off = (template.render(ASK, add_generation_prompt=True, options={"enable_thinking": x}) for x in (True, False))
    assert on.endswith("<|im_start|>assistant\n<think>\n")
    assert off.endswith("<|im_start|>assistant\n<think></think>")
    with pytest.raises(DataError, match=r"'enable_thinkin': this chat template does not read it; it reads: enable_th"):
        template.render(ASK, options={"enable_thinkin": True})
    with pytest.raises(DataError, match=r"'thinking': this chat template does not read it; it reads: none"):
        open_template("chatml").render(ASK, options={"thinking": True})
    for name in ("messages", "tools", "add_generation_prompt", "bos_token"):
        with pytest.raises(DataError, match=f"'{name}': comes from the conversation or the tokenizer"):
            template.render(ASK, options={name: "x"})


def test_documents_are_an_option() -> None:
    documents = [{"title": "a", "text": "b"}]
    text = open_template("command_r").render(ASK, options={"documents": documents, "citation_mode": "accurate"})
    assert "Document: 0\ntitle: a\ntext: b\n" in text
    assert text == theirs(
        (FOLDER / "command_r.jinja").read_text(), ASK, options={"documents": documents, "citation_mode": "accurate"}
    )


def test_history_without_thoughts_and_a_budget() -> None:
    template = open_template("nemotron_3")
    text = template.render(LONG, options={"reasoning_budget": 99})
    assert "<think></think>it is 42<|im_end|>" in text
    assert "it says so" not in text
    assert " second \n\n{thinking token budget: 99}<|im_end|>" in text
    kept = template.render(LONG, options={"truncate_history_thinking": False})
    assert "<think>\nit says so\n</think>\nit is 42<|im_end|>" in kept


def test_another_template_for_tools() -> None:
    template = ChatTemplate("plain", NAMES, with_tools="with {{ tools|length }}{{ mode }}")
    assert template.render(ASK) == "plain"
    assert template.render(ASK, tools=TOOLS, options={"mode": "!"}) == "with 2!"
    assert template.options == ("mode",)


def test_numbers_look_as_python_writes_them() -> None:
    source = "{{ tools[0].n }} {{ tools[0].n ~ '' }} {{ tools[0]|tojson }} {{ tools[0].f }}"
    for number in (1e-7, 1e20, 1.5e300, -2e-9, 1e16):
        tools = [{"n": number, "f": 3.0}]
        assert ChatTemplate(source, NAMES).render(ASK, tools=tools) == theirs(source, ASK, tools)
    with pytest.raises(DataError, match=r"1e-07 and the digits 0.0000001 cannot be told apart"):
        ChatTemplate(source, NAMES).render([{"role": "user", "content": "0.0000001"}], tools=[{"n": 1e-7}])


def test_the_date_is_that_of_today() -> None:
    template = ChatTemplate("{{ strftime_now('%Y-%m-%d %% %B') }}", NAMES)
    before = datetime.now()
    assert template.render(ASK) in {f"{day:%Y-%m-%d % %B}" for day in (before, datetime.now())}


def test_nothing_that_is_given_is_changed() -> None:
    arguments = '{"a": 1}'
    messages = [*ASK, {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": arguments}}]}]
    open_template("generation_blocks").render(messages)
    assert messages[1]["tool_calls"][0]["function"]["arguments"] is arguments
