"""A corpus of chat templates, conversations of every kind, and jinja2 as `transformers` sets it up to compare with."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st

from seqloom.core.errors import DataError
from seqloom.data.chat_template import ChatTemplate

FOLDER = Path(__file__).parent / "data" / "chat_templates"
CORPUS = sorted(path.stem for path in FOLDER.glob("*.jinja"))
NAMES = {"bos_token": "<s>", "eos_token": "</s>"}

TOOLS: list[dict[str, Any]] = [
    {
        "type": "function",
        "function": {
            "name": "look_up",
            "description": " Finds <b>x</b> & é's \n",
            "parameters": {
                "type": "object",
                "properties": {
                    "query": {"type": "string", "description": "what to find"},
                    "count": {"type": ["integer", "null"], "default": 1.0, "minimum": 1e-7},
                    "kind": {"enum": ["a", "b"]},
                    "rows": {"type": "array", "items": {"type": "object", "properties": {"x": {"type": "number"}}}},
                },
                "required": ["query"],
            },
        },
    },
    {"type": "function", "function": {"name": "now", "description": "", "parameters": {"type": "object"}}},
]

TEXTS = st.one_of(
    st.sampled_from(
        [
            *(
                "hi",
                " padded \n",
                "",
                "two\n\nlines",
                "naïve 東京 🙂",
                "</think>",
                "<think>\nwhy\n</think>\n\nthen",
                "/think",
            ),
            *("/no_think now", "<|im_end|>", "{{ x }}", 'it\'s "quoted" \\ & <b>', "<tool_response>x</tool_response>"),
        ]
    ),
    st.text(
        st.characters(exclude_categories=["Cs"], exclude_characters="\x1c\x1d\x1e\x1f\ufdd0\ufdd1\ufdd2\ufdd3"),
        max_size=20,
    ),
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)


@st.composite
def conversations(draw: st.DrawFn, tools: bool = True) -> list[dict[str, Any]]:
    """System text or none, then questions and answers, some of them after calls of tools."""
    messages = [{"role": "system", "content": draw(TEXTS)}] if draw(st.booleans()) else []
    for _ in range(draw(st.integers(1, 3))):
        messages.append({"role": "user", "content": draw(TEXTS)})
        if tools and draw(st.booleans()):
            messages += draw(steps())
        messages.append(draw(answers()))
    return messages


@st.composite
def answers(draw: st.DrawFn) -> dict[str, Any]:
    thoughts = {"reasoning_content": draw(TEXTS)} if draw(st.booleans()) else {}
    return {"role": "assistant", "content": draw(TEXTS), **thoughts}


@st.composite
def steps(draw: st.DrawFn) -> list[dict[str, Any]]:
    """A call and its result."""
    arguments = draw(st.dictionaries(st.sampled_from(["query", "count", "items", "x y"]), VALUES, max_size=3))
    call = {"id": "abcdefghi", "type": "function", "function": {"name": "look_up", "arguments": arguments}}
    calling = {**draw(answers()), "tool_calls": [call]}
    return [calling, {"role": "tool", "content": draw(TEXTS), "tool_call_id": "abcdefghi", "name": "look_up"}]


def open_template(name: str) -> ChatTemplate:
    return ChatTemplate((FOLDER / f"{name}.jinja").read_text(encoding="utf-8"), NAMES)


def ours(template: ChatTemplate, messages: Any, **settings: Any) -> str | None:
    """The text, or None for an error."""
    try:
        return template.render(messages, **settings)
    except DataError:
        return None


def theirs(
    source: str, messages: Any, tools: Any = None, add_generation_prompt: bool = False, options: Any = None
) -> str | None:
    """The text that `transformers` renders with jinja2, or None for an error."""
    utilities = pytest.importorskip("transformers.utils.chat_template_utils")
    variables = {"documents": None, "add_generation_prompt": add_generation_prompt, **NAMES, **(options or {})}
    try:
        (text,), _ = utilities.render_jinja_template([messages], tools, chat_template=source, **variables)
    except Exception:  # whatever a template does
        return None
    return str(text)
