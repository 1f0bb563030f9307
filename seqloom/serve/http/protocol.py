"""Bodies of OpenAI's chat completions and completions, read strictly.

A field that is not known here is refused, so no answer is silently softened. Fields that clients send and that cannot
change an answer are accepted and without effect: `user`, `safety_identifier`, `metadata`, `prompt_cache_key`,
`prompt_cache_retention`, `prompt_cache_options`, `prediction` (it only speeds up), `service_tier` of "auto" or
"default", `store: false`, `verbosity: "medium"`, `modalities: ["text"]`, `best_of` equal to `n`. Their other values are
refused, as are audio, images, web search, `moderation`, `function_call`, and `suffix`. Beyond OpenAI: `top_k`, `min_p`,
`repetition_penalty`, `min_tokens`, `ignore_eos`, `stop_token_ids`, `structured_outputs`, `thinking_tokens` (also called
`max_thinking_tokens`), `chat_template_kwargs`.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue

MOST_CHOICES = 64
MOST_STOPS = 16
MOST_TOKENS = 1 << 30

Object = dict[str, JsonValue]
Stop = Annotated[str, Field(min_length=1, max_length=1024)]
Count = Annotated[int, Field(ge=0, le=MOST_TOKENS)]
TokenIds = Annotated[list[Count], Field(min_length=1)]
Bias = Annotated[float, Field(ge=-100, le=100)]
Seed = Annotated[int, Field(ge=-(1 << 63), lt=1 << 63)]
Penalty = Annotated[float, Field(ge=-2, le=2)]


class Body(BaseModel):
    """A JSON object with known keys and finite numbers; nothing is turned into another type."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, hide_input_in_errors=True)


class StreamOptions(Body):
    include_usage: bool = False
    continuous_usage_stats: bool = False
    """Usage so far in every chunk."""
    include_obfuscation: bool = False
    """Without effect: padding hides lengths from those who watch an encrypted line, and this server has none."""


class StructuredOutputs(Body):
    """What an answer must match; one of these."""

    json_: JsonValue | None = Field(default=None, alias="json")
    """A JSON schema."""
    regex: str | None = None
    grammar: str | None = None
    """In the language of Lark."""
    choice: Annotated[list[str], Field(min_length=1, max_length=1000)] | None = None


class CacheOptions(Body):
    """Without effect: prefixes are remembered as long as there is room."""

    mode: Literal["implicit", "explicit"] | None = None
    ttl: str | None = None


class Drawing(Body):
    """How tokens are drawn, and when to stop; shared by both ways to ask."""

    model: str | None = None
    temperature: Annotated[float, Field(ge=0, le=100)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1, le=MOST_TOKENS)] | None = None
    """0 and -1 keep all."""
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    frequency_penalty: Penalty | None = None
    presence_penalty: Penalty | None = None
    repetition_penalty: Annotated[float, Field(ge=1e-3, le=10)] | None = None
    logit_bias: Annotated[dict[str, Bias], Field(max_length=1024)] | None = None
    seed: Seed | None = None
    n: Annotated[int, Field(ge=1, le=MOST_CHOICES)] | None = None
    stop: Stop | Annotated[list[Stop], Field(max_length=MOST_STOPS)] | None = None
    stop_token_ids: Annotated[list[Count], Field(max_length=64)] | None = None
    min_tokens: Count | None = None
    ignore_eos: bool | None = None
    structured_outputs: StructuredOutputs | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None
    safety_identifier: str | None = None
    metadata: Object | None = None
    prompt_cache_key: str | None = None
    prompt_cache_options: CacheOptions | None = None
    prompt_cache_retention: str | None = None
    service_tier: Literal["auto", "default"] | None = None


class CompletionBody(Drawing):
    """POST /v1/completions"""

    prompt: str | TokenIds | Annotated[list[str] | list[TokenIds], Field(min_length=1, max_length=1024)]
    """A text or token ids, or a batch of either."""
    max_tokens: Count | None = 16
    echo: bool | None = None
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    best_of: int | None = None
    suffix: Literal[""] | None = None


class JsonSchema(Body):
    name: str
    description: str | None = None
    schema_: Object | None = Field(default=None, alias="schema")
    strict: bool | None = None
    """Answers always keep to the schema, strict or not."""


class ResponseFormat(Body):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class Function(Body):
    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_.\-]{1,128}$")]
    description: str | None = None
    parameters: Object | None = None
    strict: bool | None = None


class Tool(Body):
    type: Literal["function"]
    function: Function


class FunctionName(Body):
    name: str


class NamedChoice(Body):
    type: Literal["function"]
    function: FunctionName


class AllowedTools(Body):
    mode: Literal["auto", "required"]
    tools: Annotated[list[NamedChoice], Field(min_length=1, max_length=1000)]


class AllowedChoice(Body):
    type: Literal["allowed_tools"]
    allowed_tools: AllowedTools


Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]


class ChatBody(Drawing):
    """POST /v1/chat/completions"""

    messages: Annotated[list[Object], Field(min_length=1, max_length=10_000)]
    max_tokens: Annotated[int, Field(ge=1, le=MOST_TOKENS)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1, le=MOST_TOKENS)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    response_format: ResponseFormat | None = None
    tools: Annotated[list[Tool], Field(max_length=1000)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedChoice | AllowedChoice | None = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: Effort | None = None
    thinking_tokens: Count | None = None
    max_thinking_tokens: Count | None = None
    chat_template_kwargs: Annotated[dict[str, bool | int | str | None], Field(max_length=64)] | None = None
    store: Literal[False] | None = None
    functions: None = None
    function_call: None = None
    audio: None = None
    web_search_options: None = None
    moderation: None = None
    prediction: Object | None = None
    modalities: list[Literal["text"]] | None = None
    verbosity: Literal["medium"] | None = None


class TokenizeBody(Body):
    """POST /tokenize: a text, or messages as a chat would read them."""

    model: str | None = None
    prompt: str | None = None
    messages: list[Object] | None = None
    tools: list[Tool] | None = None
    add_special_tokens: bool = True
    """Begin with the token that every text begins with, if there is one."""
    add_generation_prompt: bool = True
    chat_template_kwargs: dict[str, bool | int | str | None] | None = None


class DetokenizeBody(Body):
    """POST /detokenize"""

    model: str | None = None
    tokens: list[Count]
