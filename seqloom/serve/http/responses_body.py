"""Bodies of OpenAI's Responses API, and the chat that they ask for.

The server keeps nothing: a conversation comes whole with every request, so what leans on a stored one is refused
(`previous_response_id`, `conversation`, `store: true`, `background`, stored `prompt`), and so are tools that run at
OpenAI; `max_tool_calls` counts only those. `include` may ask for log-probabilities, and for encrypted thoughts: these
go out in the open, and come back so.
"""

from typing import Annotated, Any, Literal

from pydantic import Field

from seqloom.serve.http.errors import bad
from seqloom.serve.http.protocol import (
    MOST_TOKENS,
    AllowedChoice,
    AllowedTools,
    Body,
    CacheOptions,
    ChatBody,
    Count,
    Effort,
    Function,
    FunctionName,
    JsonSchema,
    NamedChoice,
    Object,
    ResponseFormat,
    Seed,
    Tool,
)


class FlatTool(Function):
    type: Literal["function"]


class FlatChoice(Body):
    type: Literal["function"]
    name: str


class FlatAllowed(Body):
    type: Literal["allowed_tools"]
    mode: Literal["auto", "required"]
    tools: Annotated[list[FlatChoice], Field(min_length=1, max_length=1000)]


class TextFormat(Body):
    type: Literal["text", "json_object", "json_schema"]
    name: str | None = None
    description: str | None = None
    schema_: Object | None = Field(default=None, alias="schema")
    strict: bool | None = None


class TextSettings(Body):
    format: TextFormat | None = None
    verbosity: Literal["medium"] | None = None


class Reasoning(Body):
    effort: Effort | None = None
    context: Literal["auto"] | None = None
    mode: Literal["standard"] | None = None
    summary: Literal["auto", "concise", "detailed"] | None = None
    """Without effect: the thoughts themselves are given."""
    generate_summary: Literal["auto", "concise", "detailed"] | None = None


class ResponsesStreamOptions(Body):
    include_obfuscation: bool = False


class ResponsesBody(Body):
    """POST /v1/responses"""

    model: str | None = None
    input: Annotated[str, Field(min_length=1)] | Annotated[list[Object], Field(min_length=1, max_length=10_000)]
    instructions: str | None = None
    max_output_tokens: Annotated[int, Field(ge=1, le=MOST_TOKENS)] | None = None
    temperature: Annotated[float, Field(ge=0, le=100)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1, le=MOST_TOKENS)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    seed: Seed | None = None
    tools: Annotated[list[FlatTool], Field(max_length=1000)] | None = None
    tool_choice: Literal["none", "auto", "required"] | FlatChoice | FlatAllowed | None = None
    parallel_tool_calls: bool | None = None
    text: TextSettings | None = None
    reasoning: Reasoning | None = None
    thinking_tokens: Count | None = None
    chat_template_kwargs: Annotated[dict[str, bool | int | str | None], Field(max_length=64)] | None = None
    stream: bool | None = None
    stream_options: ResponsesStreamOptions | None = None
    include: list[Literal["reasoning.encrypted_content", "message.output_text.logprobs"]] | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    store: Literal[False] | None = None
    background: Literal[False] | None = None
    truncation: Literal["disabled"] | None = None
    service_tier: Literal["auto", "default"] | None = None
    user: str | None = None
    safety_identifier: str | None = None
    metadata: Object | None = None
    prompt_cache_key: str | None = None
    prompt_cache_options: CacheOptions | None = None
    prompt_cache_retention: str | None = None
    max_tool_calls: Count | None = None
    previous_response_id: None = None
    conversation: None = None
    prompt: None = None
    context_management: None = None
    moderation: None = None

    @property
    def wants_logprobs(self) -> bool:
        return bool(self.top_logprobs) or "message.output_text.logprobs" in (self.include or ())


class InputTokensBody(ResponsesBody):
    """POST /v1/responses/input_tokens: what the prompt of a response would take."""


def as_chat(body: ResponsesBody) -> ChatBody:
    """The same request as chat completions would put it.

    Raises:
        RefusedError: an item of the conversation that is not known here.
    """
    form = body.text.format if body.text else None
    return ChatBody(
        model=body.model,
        messages=_messages(body),
        max_completion_tokens=body.max_output_tokens,
        temperature=body.temperature,
        top_p=body.top_p,
        top_k=body.top_k,
        min_p=body.min_p,
        seed=body.seed,
        logprobs=body.wants_logprobs,
        top_logprobs=body.top_logprobs,
        tools=[
            Tool(type="function", function=Function(**tool.model_dump(exclude={"type"}))) for tool in body.tools or ()
        ],
        tool_choice=_choice(body.tool_choice),
        parallel_tool_calls=body.parallel_tool_calls,
        response_format=None if form is None else _format(form),
        reasoning_effort=None if body.reasoning is None else body.reasoning.effort,
        thinking_tokens=body.thinking_tokens,
        chat_template_kwargs=body.chat_template_kwargs,
    )


def _choice(choice: str | FlatChoice | FlatAllowed | None) -> Any:
    if isinstance(choice, FlatChoice):
        return NamedChoice(type="function", function=FunctionName(name=choice.name))
    if isinstance(choice, FlatAllowed):
        named = [_choice(each) for each in choice.tools]
        return AllowedChoice(type="allowed_tools", allowed_tools=AllowedTools(mode=choice.mode, tools=named))
    return choice


def _format(form: TextFormat) -> ResponseFormat:
    if form.type != "json_schema":
        return ResponseFormat(type=form.type)
    schema = JsonSchema(name=form.name or "answer", schema=form.schema_, strict=form.strict)
    return ResponseFormat(type="json_schema", json_schema=schema)


def _messages(body: ResponsesBody) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = []
    if body.instructions is not None:
        messages.append({"role": "system", "content": body.instructions})
    items: Any = [{"role": "user", "content": body.input}] if isinstance(body.input, str) else body.input
    joins = False  # thoughts, words and calls of an assistant in a row are one message
    for place, item in enumerate(items):
        where = f"input[{place}]"
        kind = item.get("type", "message")
        assistant = kind in ("reasoning", "function_call") or (kind == "message" and item.get("role") == "assistant")
        if assistant and not joins:
            messages.append({"role": "assistant", "content": ""})
        joins = assistant
        if kind == "message":
            content = _text(item.get("content"), f"{where}.content")
            if assistant:
                messages[-1]["content"] += content
            else:
                messages.append({"role": item.get("role"), "content": content})
        elif kind == "reasoning":
            thoughts = _text(item.get("content") or [], f"{where}.content")
            if thoughts:
                messages[-1]["reasoning_content"] = messages[-1].get("reasoning_content", "") + thoughts
        elif kind == "function_call":
            function = {"name": item.get("name"), "arguments": item.get("arguments", "")}
            call = {"id": item.get("call_id"), "type": "function", "function": function}
            messages[-1].setdefault("tool_calls", []).append(call)
        elif kind == "function_call_output":
            output = _text(item.get("output"), f"{where}.output")
            messages.append({"role": "tool", "tool_call_id": item.get("call_id"), "content": output})
        else:
            raise bad(f"{where}.type: {kind!r:.60} is not known here", "input")
    return messages


def _text(content: Any, where: str) -> str:
    """The text of a content, which may come in parts."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise bad(f"{where}: expected a text or a list of parts", "input")
    texts = []
    for part in content:
        if not isinstance(part, dict) or not isinstance(part.get("text"), str) or not _is_text(part.get("type")):
            raise bad(f"{where}: only parts of text are known here, got {part!r:.80}", "input")
        texts.append(part["text"])
    return "".join(texts)


def _is_text(kind: Any) -> bool:
    return kind in ("input_text", "output_text", "text", "reasoning_text")
