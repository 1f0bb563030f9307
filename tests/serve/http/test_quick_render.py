"""Chats rendered without a thread: the same text as by a thread, and nothing worse when a template means harm."""

import asyncio
import subprocess
from typing import Any

import pytest

from chat_corpus import NAMES, open_template
from seqloom.core.errors import DataError
from seqloom.data.chat_template import ChatTemplate
from seqloom.serve.http import quick_render
from seqloom.serve.http.quick_render import QuickRenderer

CHATS: list[list[dict[str, Any]]] = [
    [{"role": "user", "content": 'naïve 東京 🙂 <b>"x"</b>\n'}],
    [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "yes", "reasoning_content": "hm"},
        {"role": "user", "content": "and?"},
    ],
    [{"role": "assistant", "content": "first"}, {"role": "user", "content": "a"}, {"role": "user", "content": "b"}],
]


def rendered(template: ChatTemplate, chats: Any, options: Any = None) -> list[str | None]:
    async def run() -> list[str | None]:
        quick = QuickRenderer(template)
        try:
            return [*await asyncio.gather(*(quick.render(chat, options or {}) for chat in chats))]
        finally:
            await quick.end()

    return asyncio.run(run())


def slowly(template: ChatTemplate, chat: Any, options: Any = None) -> str | None:
    try:
        return template.render(chat, add_generation_prompt=True, options=options or {})
    except DataError:
        return None


@pytest.mark.parametrize("name", ["nemotron_3", "qwen_3", "mistral_instruct", "llama_3_tools"])
def test_the_text_is_that_of_the_slow_way(name: str) -> None:
    template = open_template(name)
    for options in [{}, {"enable_thinking": False}] if "enable_thinking" in template.options else [{}]:
        assert rendered(template, CHATS, options) == [slowly(template, chat, options) for chat in CHATS]


def test_what_is_not_ordinary_goes_the_slow_way() -> None:
    template = ChatTemplate("{{ messages[0].content }}{% if x is defined %}{{ x }}{% endif %}", NAMES)
    chat = CHATS[0]
    assert rendered(template, [[{"role": "user", "content": "\ud800"}], chat, [{"role": "nobody"}]]) == [
        None, chat[0]["content"], None,
    ]  # fmt: skip
    assert rendered(template, [chat], {"x": 1e-7}) == rendered(template, [chat], {"y": 1}) == [None]
    assert rendered(template, [[{"role": "user", "content": "x" * (1 << 16)}], chat]) == [None, chat[0]["content"]]


def test_a_reply_may_be_longer_than_a_pipe_holds() -> None:
    template = ChatTemplate("{% for i in range(50) %}{{ messages[0].content }}{% endfor %}", NAMES)
    chat = [{"role": "user", "content": "a line\n" * 1000}]
    assert rendered(template, [chat]) == [chat[0]["content"] * 50]


def test_a_template_that_ends_its_process_ends_one_only(monkeypatch: pytest.MonkeyPatch) -> None:
    endless = "{% set a = namespace() %}{% set a.x = a %}{{ a }}"
    asked = "{% if messages[0].content == 'harm' %}" + endless + "{% else %}well{% endif %}"
    opened, start = [], subprocess.Popen

    def counted(*arguments: Any, **settings: Any) -> Any:
        opened.append(arguments)
        return start(*arguments, **settings)

    monkeypatch.setattr(quick_render.subprocess, "Popen", counted)
    harm = [{"role": "user", "content": "harm"}]
    assert rendered(ChatTemplate(asked, NAMES), [CHATS[0], harm, CHATS[0], harm]) == ["well", None, None, None]
    assert len(opened) == 1
