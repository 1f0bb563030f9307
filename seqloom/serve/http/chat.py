"""From a body of chat completions to requests of the engine: template, thinking, tools, form of the answer.

Thinking is opened or not by the end of the prompt, and bounded by a budget of tokens. `thinking_tokens: 0` and
`reasoning_effort: "none"` leave it away; the other efforts are budgets, unless the template has an option of that name.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from seqloom.core.errors import ConfigError
from seqloom.serve.call_grammar import offered_calls, required_call
from seqloom.serve.config import Grammar
from seqloom.serve.http.drawing import choices, grammar, sampling
from seqloom.serve.http.errors import RefusedError, bad
from seqloom.serve.http.model import ServedModel
from seqloom.serve.http.prepared import Defaults, Prepared
from seqloom.serve.http.protocol import AllowedChoice, ChatBody, NamedChoice

EFFORTS = {"none": 0, "minimal": 256, "low": 1024, "medium": 4096, "high": None, "xhigh": None, "max": None}
"""Budgets of thinking tokens; None has no limit."""


SHORT = 4000
"""Characters of a conversation that take no time worth a thread."""


async def quick_text(body: ChatBody, model: ServedModel, defaults: Defaults) -> str | None:
    """The text of a short chat that asks for nothing which takes time; None if a thread must prepare it.

    Raises:
        RefusedError: it cannot be answered as it is asked for.
    """
    if body.tools or body.response_format or body.structured_outputs or not _is_short(body.messages):
        return None
    thinking, _, options = _thinking(body, model, defaults)
    text = await model.render_quickly(body.messages, options, thinking)
    return text if text is not None and len(text) < 4 * SHORT else None


def _is_short(messages: Sequence[Mapping[str, Any]]) -> bool:
    values = [value for message in messages for value in message.values()]
    return all(isinstance(value, str) for value in values) and sum(map(len, values)) <= SHORT


def prepare_chat(
    body: ChatBody, model: ServedModel, capacity: int, defaults: Defaults, text: str | None = None
) -> Prepared:
    """Render, encode and check a request.

    Args:
        capacity: most tokens of prompt and answer.
        text: of the conversation, if it was rendered before.
    Raises:
        RefusedError: it cannot be answered as it is asked for.
    """
    thinking, budget, options = _thinking(body, model, defaults)
    tools = _offered(body)
    if text is None:
        text = model.render(body.messages, tools, options, thinking=thinking)
    prompt = model.tokenizer.encode(text, specials=True)
    marks = model.marks(text, tools=bool(tools))
    if marks.think_close is None:
        budget = None  # a model that does not think needs no limit
    if body.top_logprobs is not None and not body.logprobs:
        raise bad("top_logprobs: is for log-probabilities; set logprobs to true", "top_logprobs")
    asked = body.max_completion_tokens or body.max_tokens
    settings = sampling(
        body, length(len(prompt), asked, capacity, defaults), (model.tokenizer.answer_end,),
        thinking_tokens=budget, logprobs=(body.top_logprobs or 0) if body.logprobs else None,
        grammar=_calls(body, tools or [], model),
    )  # fmt: skip
    progress = bool(body.stream_options and body.stream_options.continuous_usage_stats)
    same = {"prompt": prompt, "draft": defaults.draft_tokens, "marks": vars(marks), "progress": progress}
    return Prepared(
        requests=[{**same, "sampling": each} for each in choices(settings, body.n or 1)],
        tools=tools or [],
        form=model.form,
        one_call=body.parallel_tool_calls is False,
    )


def length(prompt: int, asked: int | None, capacity: int, defaults: Defaults, param: str = "messages") -> int:
    """Most tokens of an answer.

    Args:
        param: where the prompt came from.
    Raises:
        RefusedError: prompt and answer together do not fit.
    """
    if prompt + (asked or 1) > capacity:
        raise RefusedError(
            400, f"the prompt has {prompt:,} tokens, the answer may have {asked or 1:,}; together {capacity:,} fit",
            param=param, code="context_length_exceeded",
        )  # fmt: skip
    return asked or min(defaults.answer_tokens, capacity - prompt)


def _thinking(
    body: ChatBody, model: ServedModel, defaults: Defaults
) -> tuple[bool | None, int | None, Mapping[str, Any]]:
    """Whether to think (None: as the server was set up), the budget of it, and the options of the template."""
    if body.thinking_tokens is not None and body.max_thinking_tokens is not None:
        raise bad("thinking_tokens and max_thinking_tokens are the same; give one", "thinking_tokens")
    budget = body.thinking_tokens if body.thinking_tokens is not None else body.max_thinking_tokens
    options, effort = dict(body.chat_template_kwargs or {}), body.reasoning_effort
    if effort is not None and "reasoning_effort" in model.options:
        options = {"reasoning_effort": effort, **options}
    elif effort is not None and budget is None:
        return EFFORTS[effort] != 0, EFFORTS[effort], options
    if budget is None:
        return None, defaults.thinking_tokens, options
    return budget > 0, budget, options


def _offered(body: ChatBody) -> list[dict[str, Any]] | None:
    """The tools that the model is told of."""
    choice, names = body.tool_choice, [tool.function.name for tool in body.tools or ()]
    chosen = [choice] if isinstance(choice, NamedChoice) else []
    if isinstance(choice, AllowedChoice):
        chosen = choice.allowed_tools.tools
    for each in chosen:
        if each.function.name not in names:
            raise bad(f"tool_choice: no tool is called '{each.function.name}'", "tool_choice")
    if choice == "required" and not names:
        raise bad("tool_choice: a call is required, but there are no tools", "tool_choice")
    if len(set(names)) < len(names):
        raise bad("tools: two have the same name", "tools")
    if not names or choice == "none":
        return None
    allowed = {each.function.name for each in chosen} if isinstance(choice, AllowedChoice) else {*names}
    return [tool.model_dump(exclude_none=True) for tool in body.tools or () if tool.function.name in allowed]


def _calls(body: ChatBody, tools: list[dict[str, Any]], model: ServedModel) -> Grammar | None:
    """The grammar of an answer that must be a call, or whose calls must keep to the schemas of strict tools."""
    choice = body.tool_choice
    if not tools:
        return None
    if (choice.allowed_tools.mode if isinstance(choice, AllowedChoice) else choice) in (None, "auto"):
        return offered_calls(model.form, tools, model.tokenizer, grammar(body)) if model.form else None
    if model.form is None:
        raise bad("tool_choice: how this model writes calls is not known here, so none can be required", "tool_choice")
    if isinstance(choice, NamedChoice):
        tools = [tool for tool in tools if tool["function"]["name"] == choice.function.name]
    try:
        return required_call(model.form, tools, model.tokenizer)
    except ConfigError as error:
        raise bad(str(error), "tools") from None
