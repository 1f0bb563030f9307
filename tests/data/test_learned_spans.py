"""What an assistant wrote, in the text and in tokens; the prompts to compare with are rendered by jinja2."""

from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from chat_corpus import CORPUS, NAMES, TOOLS, conversations, open_template, theirs
from seqloom.core.errors import DataError
from seqloom.data.chat_template import ChatTemplate
from seqloom.data.tokenizer import TextTokenizer

CALL = {"id": "abcdefghi", "type": "function", "function": {"name": "look_up", "arguments": {"q": "x"}}}
TWO_TURNS = [
    {"role": "user", "content": "q1"},
    {"role": "assistant", "content": "a1", "reasoning_content": "r1"},
    {"role": "user", "content": "q2"},
    {"role": "assistant", "content": "a2", "reasoning_content": "r2"},
]
WITH_TOOL = [
    {"role": "user", "content": "q1"},
    {"role": "assistant", "content": "", "reasoning_content": "r0", "tool_calls": [CALL]},
    {"role": "tool", "content": "found", "tool_call_id": "abcdefghi"},
    {"role": "assistant", "content": "a1", "reasoning_content": "r1"},
    {"role": "user", "content": "q2"},
    {"role": "assistant", "content": "a2"},
]

MARKS = {
    **{"chatml": "<|im_end|>", "nemotron_3": "<|im_end|>", "qwen_3": "<|im_end|>", "generation_blocks": "<|im_end|>"},
    **{"nano_2": "\n<SPECIAL_12>", "nemotron_h": "\n<SPECIAL_12>", "llama_2": " </s>", "llama_3_tools": "<|eot_id|>"},
    **{"mistral_instruct": "</s>", "gemma": "<end_of_turn>", "deepseek": "</s>", "phi": "<|end|>", "zephyr": "</s>"},
    **{"command_r": "<|END_OF_TURN|>", "typed_tools": " </s>", "channels": ("<|return|>", "<|end|>", "<|call|>")},
}


def pieces(rendered: tuple[str, list[tuple[int, int]]]) -> list[str]:
    text, spans = rendered
    return [text[start:end] for start, end in spans]


def test_answers_with_their_thoughts_calls_and_marks() -> None:
    learned = [pieces(each) for each in open_template("nemotron_3").render_turns(WITH_TOOL, tools=TOOLS)]
    call = "<tool_call>\n<function=look_up>\n<parameter=q>\nx\n</parameter>\n</function>\n</tool_call>\n<|im_end|>"
    assert learned == [["r0\n</think>\n" + call, "r1\n</think>\na1<|im_end|>"], ["a2<|im_end|>"]]


def test_what_the_prompt_gives_is_not_learned() -> None:
    template = open_template("nemotron_3")
    for thoughts, options, prompt, answer in (
        ({"reasoning_content": "why"}, {}, "<think>\n", "why\n</think>\nyes<|im_end|>"),
        ({"reasoning_content": "why"}, {"enable_thinking": False}, "<think>\n", "why\n</think>\nyes<|im_end|>"),
        ({}, {"enable_thinking": False}, "<think></think>", "yes<|im_end|>"),
        ({}, {}, "<think></think>", "yes<|im_end|>"),
    ):
        messages = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "yes", **thoughts}]
        text, ((start, end),) = template.render_learned(messages, options=options)
        assert text[:start].endswith("<|im_start|>assistant\n" + prompt)
        assert (text[start:end], text[end:]) == (answer, "\n")


def test_a_template_that_rewrites_history_gives_a_text_for_every_question() -> None:
    texts = open_template("nemotron_3").render_turns(TWO_TURNS)
    assert [pieces(each) for each in texts] == [["r1\n</think>\na1<|im_end|>"], ["r2\n</think>\na2<|im_end|>"]]
    assert "a2" not in texts[0][0]
    assert "<think></think>a1<|im_end|>" in texts[1][0]
    stays = [{key: value for key, value in message.items() if key != "reasoning_content"} for message in TWO_TURNS]
    assert [pieces(each) for each in open_template("nemotron_3").render_turns(stays)] == [
        ["a1<|im_end|>", "a2<|im_end|>"]
    ]
    kept = open_template("nemotron_3").render_turns(TWO_TURNS, options={"truncate_history_thinking": False})
    assert [pieces(each) for each in kept] == [["r1\n</think>\na1<|im_end|>", "r2\n</think>\na2<|im_end|>"]]


def test_rewritten_answers_are_found_by_a_probe() -> None:
    learned = pieces(open_template("nemotron_3").render_learned(WITH_TOOL, tools=TOOLS))
    assert learned[1:] == ["a1<|im_end|>", "a2<|im_end|>"]
    assert learned[0].startswith("<tool_call>\n<function=look_up>")
    assert pieces(open_template("qwen_3").render_learned(TWO_TURNS)) == [
        "a1<|im_end|>",
        "<think>\nr2\n</think>\n\na2<|im_end|>",
    ]
    parts = [{**message, "content": [{"type": "text", "text": message["content"]}]} for message in TWO_TURNS]
    shown = [message | {"content": parts[place]["content"]} for place, message in enumerate(TWO_TURNS)]
    assert len(pieces(open_template("gemma").render_learned(shown))) == 2


def test_a_call_may_end_with_a_mark_of_its_own() -> None:
    source = (
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}"
        "{% if m.tool_calls %}{{ m.tool_calls[0].function.name }}<call>{% else %}<end>{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    assert [pieces(each) for each in ChatTemplate(source, NAMES).render_turns(WITH_TOOL)] == [
        ["look_up<call>", "a1<end>", "a2<end>"]
    ]


def test_answers_that_were_given_are_only_read() -> None:
    for name in ("chatml", "generation_blocks", "qwen_3"):
        template = open_template(name)
        assert len(pieces(template.render_learned(TWO_TURNS))) == 2
        assert [piece[-12:] for piece in pieces(template.render_learned(TWO_TURNS, given=3))] == ["a2<|im_end|>"]
        assert [len(spans) for _, spans in template.render_turns(TWO_TURNS, given=2)] == [1]


def test_what_cannot_be_told_exactly_is_refused() -> None:
    with pytest.raises(DataError, match=r"messages\[1\]: around this answer the chat template writes something else"):
        open_template("nano_2").render_learned(TWO_TURNS)  # the prompt asks for thoughts, and the text has none
    with pytest.raises(DataError, match=r"messages\[2\]: around this answer"):
        # the system text stands in the last question, and only while that is the last message
        open_template("mistral_instruct").render_turns([{"role": "system", "content": "s"}, *TWO_TURNS[:2]])
    with pytest.raises(DataError, match="nothing after an answer that would end it"):
        ChatTemplate("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}", NAMES).render_turns(
            TWO_TURNS
        )
    nested = "{% generation %}{% generation %}x{% endgeneration %}{% endgeneration %}"
    with pytest.raises(DataError, match="blocks inside of one another"):
        ChatTemplate(nested, NAMES).render_learned(TWO_TURNS)
    changed = "{% set x %}{% generation %} y {% endgeneration %}{% endset %}{{ x|trim }}"
    with pytest.raises(DataError, match="changes what it wrote in generation blocks"):
        ChatTemplate(changed, NAMES).render_learned(TWO_TURNS)


def test_an_answer_that_is_written_differently_once_others_follow_is_refused() -> None:
    """Nano-2's template takes thoughts out of the content of an earlier answer, so what was given stands nowhere."""
    call = {"id": "abcdefghi", "type": "function", "function": {"name": "look_up", "arguments": {}}}
    messages = [
        {"role": "system", "content": "/no_think"},
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "why</think>then", "tool_calls": [call]},
        {"role": "tool", "content": "x", "tool_call_id": "abcdefghi", "name": "look_up"},
        {"role": "assistant", "content": "hi"},
    ]
    with pytest.raises(DataError, match="around this answer"):
        open_template("nano_2").render_turns(messages)
    messages[2]["content"] = "then"
    assert len(pieces(open_template("nano_2").render_turns(messages)[0])) == 2


WITHOUT_TOOLS = {"nemotron_h", "llama_2", "gemma", "command_r"}
"""Their roles must alternate."""


@pytest.mark.parametrize("name", CORPUS)
@settings(max_examples=8, deadline=None)
@given(data=st.data(), tools=st.sampled_from([None, TOOLS]))
def test_every_answer_begins_where_its_prompt_ends(name: str, data: st.DataObject, tools: Any) -> None:
    template = open_template(name)
    messages = data.draw(conversations(tools=name not in WITHOUT_TOOLS))
    if name == "nano_2":
        messages.insert(0, {"role": "system", "content": "/no_think"})
    try:
        texts, reason = template.render_turns(messages, tools=tools), ""
    except DataError as error:
        texts, reason = [], str(error)
    if reason:
        assert "around this answer" in reason or theirs(template.source, messages, tools) is None
        return
    answers = [place for place, message in enumerate(messages) if message["role"] == "assistant"]
    found = [(text, start, end) for text, spans in texts for start, end in spans]
    assert len(found) == len(answers)
    assert len(texts) in (1, sum(message["role"] == "user" for message in messages))
    switches = [{}, *({"enable_thinking": value} for value in (True, False) if "enable_thinking" in template.options)]
    for place, (text, start, end) in zip(answers, found, strict=True):
        assert text[:start] in {theirs(template.source, messages[:place], tools, True, each) for each in switches}
        assert text[start:end].endswith(MARKS[name])
        answered = theirs(template.source, messages[: place + 1], tools)
        assert answered is not None
        if "tool_calls" in messages[place] and name == "qwen_3":
            continue  # it writes an empty block of thoughts into the last message only
        assert answered.startswith(text[:end])
        assert answered[end:].strip() == ("</s>" if name == "phi" else "")


@pytest.mark.parametrize("name", sorted(set(CORPUS) - {"nano_2", "deepseek"}))
@settings(max_examples=5, deadline=None)
@given(messages=conversations(tools=False))
def test_plain_conversations_can_be_learned_with_every_template(name: str, messages: Any) -> None:
    first = 1 if messages[0]["role"] == "system" and name == "mistral_instruct" else 0
    tags = [message["content"] for message in messages[first:] if "think>" in message["content"]]
    assume(not (tags and name in ("nemotron_3", "qwen_3")))
    texts = open_template(name).render_turns(messages[first:])
    assert sum(len(spans) for _, spans in texts) == sum(message["role"] == "assistant" for message in messages)


def test_of_tokens_the_first_of_an_answer_is_learned_and_the_first_after_it_is_not(tokenizer: TextTokenizer) -> None:
    text, spans = open_template("chatml").render_learned([*TWO_TURNS[:1], {"role": "assistant", "content": "日本 🙂"}])
    ids, offsets = tokenizer.encode_with_offsets(text, specials=True)
    ((start, end),) = spans
    learned = [start <= first < end for first, _ in offsets]
    assert tokenizer.decode([index for index, each in zip(ids, learned, strict=True) if each], specials=True) == (
        "日本 🙂<|im_end|>"
    )
    before, after = learned.index(True), len(learned) - learned[::-1].index(True)
    assert tokenizer.decode(ids[:before], specials=True).endswith("<|im_start|>assistant\n")
    assert tokenizer.decode(ids[after:], specials=True) == "\n"
