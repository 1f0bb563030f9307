"""From the fields of a request to the settings that the engine draws by."""

import json
from functools import lru_cache
from typing import Any

from seqloom.core.errors import ConfigError
from seqloom.serve.config import Grammar, Sampling
from seqloom.serve.http.errors import bad
from seqloom.serve.http.protocol import ChatBody, CompletionBody, Drawing, ResponseFormat, StructuredOutputs

Settings = dict[str, Any]

_SAME = (
    "temperature", "top_p", "min_p", "frequency_penalty", "presence_penalty", "repetition_penalty", "min_tokens",
    "ignore_eos",
)  # fmt: skip


def sampling(body: Drawing, max_tokens: int, stop_tokens: tuple[int, ...] = (), **more: Any) -> Settings:
    """The settings of a request as they go to the engine; what was not said is as `Sampling` has it.

    Raises:
        RefusedError: they cannot be used.
    """
    fields: Settings = {**{name: getattr(body, name) for name in _SAME}, **more}
    fields["grammar"] = more.get("grammar") or grammar(body)
    fields = {name: value for name, value in fields.items() if value is not None}
    if body.top_p == 0:
        fields["top_p"] = 1e-9  # the most likely token alone
    try:
        found = _checked(
            **fields,
            max_tokens=max(max_tokens, 1),
            top_k=max(body.top_k or 0, 0),
            seed=None if body.seed is None else body.seed % (1 << 64),
            stop=(body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ()),
            stop_token_ids=(*stop_tokens, *(body.stop_token_ids or ())),
            logit_bias=tuple((_token(name), bias) for name, bias in (body.logit_bias or {}).items()),
        )
    except ConfigError as error:
        raise bad(str(error)) from None
    settings = dict(vars(found))
    return settings if found.grammar is None else {**settings, "grammar": dict(vars(found.grammar))}


@lru_cache(64)
def _checked(**settings: Any) -> Sampling:
    """Settings that can be used; most requests have those of another before them.

    Raises:
        ConfigError: they cannot.
    """
    found = Sampling(**settings)
    if found.grammar is not None:
        from seqloom.serve.constraints import check_grammar

        check_grammar(found.grammar)
    return found


def choices(settings: Settings, count: int) -> list[Settings]:
    """Settings of several answers to the same prompt; each has a seed of its own."""
    seed = settings["seed"]
    return [{**settings, "seed": None if seed is None else (seed + number) % (1 << 64)} for number in range(count)]


def grammar(body: Drawing) -> Grammar | None:
    """What the answer must match.

    Raises:
        RefusedError: several things at once, or one without its content.
    """
    asked = [_structured(body.structured_outputs)] if body.structured_outputs else []
    if isinstance(body, ChatBody) and body.response_format and body.response_format.type != "text":
        asked.append(_formatted(body.response_format))
    if len(asked) > 1:
        raise bad("response_format and structured_outputs cannot both be used", "structured_outputs")
    return asked[0] if asked else None


def _formatted(wanted: ResponseFormat) -> Grammar:
    if wanted.type == "json_object":
        return Grammar(kind="json", text="")
    if wanted.json_schema is None or wanted.json_schema.schema_ is None:
        raise bad("response_format.json_schema: the schema is missing", "response_format")
    return Grammar(kind="json_schema", text=json.dumps(wanted.json_schema.schema_))


def _structured(wanted: StructuredOutputs) -> Grammar:
    given = {name: value for name, value in wanted if value is not None}
    if len(given) != 1:
        raise bad("structured_outputs: give one of json, regex, grammar, choice", "structured_outputs")
    ((name, value),) = given.items()
    match name:
        case "json_":
            return Grammar(kind="json_schema", text=json.dumps(value))
        case "regex":
            return Grammar(kind="regex", text=value)
        case "grammar":
            return Grammar(kind="lark", text=value)
    return Grammar(kind="lark", text="start: " + " | ".join(json.dumps(text) for text in value))


def _token(name: str) -> int:
    if not (name.isascii() and name.isdigit() and len(name) < 10):
        raise bad(f"logit_bias: '{name:.40}' is not a token id", "logit_bias")
    return int(name)


def completion_logprobs(body: CompletionBody) -> Settings:
    """How many likely tokens to tell of, for the answer and, where it is repeated, for the prompt."""
    return {"logprobs": body.logprobs, "prompt_logprobs": body.logprobs if body.echo else None}
