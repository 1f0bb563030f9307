"""Settings of one request; free of torch so that the command line stays light."""

import math
from typing import Annotated, Literal

from seqloom.core.config import Ge, Interval, config
from seqloom.core.errors import ConfigError

MAX_LOGPROBS = 20
"""Most likely tokens that a request may ask for at each place, as at OpenAI."""
MAX_LISTED = 1024
"""Most entries of a request's logit bias, stop strings or stop tokens."""

Weights = Literal["as_stored", "bf16", "int8", "fp8", "nvfp4"]
"""Formats that an engine can keep matrices in."""

GrammarKind = Literal["json_schema", "json", "regex", "lark"]

JSON_SPACING = {"whitespace_pattern": " |\\n {0,24}|\\n\\t{0,6}"}
"""White space between the parts of JSON, as llguidance reads it: none, a space, or a line break with an indentation.
Without a bound a small model that begins with spaces goes on until its tokens are used up."""


@config
class Grammar:
    """What the text of an answer must look like."""

    kind: GrammarKind
    """JSON that a schema describes, any JSON object, a regular expression for the whole text, or a grammar in
    llguidance's form of Lark."""
    text: str = ""
    """The schema, expression or grammar; empty for any JSON."""

    def __post_init__(self) -> None:
        kinds = ("json_schema", "json", "regex", "lark")
        if self.kind not in kinds:
            raise ConfigError(f"grammar.kind: {self.kind!r} is not allowed; it must be one of {', '.join(kinds)}")
        if not isinstance(self.text, str) or bool(self.text) == (self.kind == "json"):
            wanted = "empty" if self.kind == "json" else "a text that is not empty"
            raise ConfigError(f"grammar.text: {self.text!r} is not allowed; for {self.kind} it must be {wanted}")


@config
class Sampling:
    """How to choose the tokens of one request, and when to stop."""

    max_tokens: Annotated[int, Ge(1)] = 256
    """Most tokens to generate."""
    temperature: Annotated[float, Ge(0)] = 1.0
    """Divides the logits; 0 always takes the most likely token."""
    top_k: Annotated[int, Ge(0)] = 0
    """Draw only from the k most likely tokens; 0 keeps all."""
    top_p: Annotated[float, Interval(gt=0, le=1)] = 1.0
    """Draw only from the most likely tokens that together hold this probability."""
    min_p: Annotated[float, Interval(ge=0, le=1)] = 0.0
    """Draw only from tokens at least this likely, relative to the most likely one."""
    seed: Annotated[int, Ge(0)] | None = None
    """Same seed, same text. None takes a fresh seed for every request."""
    stop: tuple[str, ...] = ()
    """Texts that end the answer; they are not part of it. Thinking and tool calls may hold them."""
    repetition_penalty: Annotated[float, Interval(ge=1e-3, le=1e3)] = 1.0
    """Divides the positive logits of tokens in prompt or answer, and multiplies the negative ones."""
    frequency_penalty: Annotated[float, Interval(ge=-2, le=2)] = 0.0
    """Taken from a token's logit for every time it is in the answer."""
    presence_penalty: Annotated[float, Interval(ge=-2, le=2)] = 0.0
    """Taken once from the logit of every token in the answer."""
    logit_bias: tuple[tuple[int, float], ...] = ()
    """(token id, what is added to its logit), each from -100 to 100; -100 all but forbids a token."""
    min_tokens: Annotated[int, Ge(0)] = 0
    """No token that ends the answer before so many others."""
    ignore_eos: bool = False
    """Go on after the end of the text, up to `max_tokens`."""
    stop_token_ids: tuple[int, ...] = ()
    """Tokens that end the answer, beside the tokenizer's own."""
    logprobs: Annotated[int, Interval(ge=0, le=MAX_LOGPROBS)] | None = None
    """Log-probabilities of each token and of so many most likely ones, as the model itself gives them: before
    temperature, penalties, filters and constraints. None reports none."""
    prompt_logprobs: Annotated[int, Interval(ge=0, le=MAX_LOGPROBS)] | None = None
    """The same for the tokens of the prompt, the first of which has none."""
    thinking_tokens: Annotated[int, Ge(0)] | None = None
    """Most tokens of thinking; a sentence begun may be ended within a grace of a tenth. 0 closes it at once."""
    grammar: Grammar | None = None
    """Form that the content of the answer must have; thinking and tool calls are free."""

    def __post_init__(self) -> None:
        # The engine takes requests built in Python, where no file reader has checked the bounds.
        for name, allowed, holds in (
            ("max_tokens", "a whole number from 1", _whole(self.max_tokens, 1)),
            ("temperature", "a finite number from 0", _real(self.temperature, 0, math.inf)),
            ("top_k", "a whole number from 0", _whole(self.top_k)),
            ("top_p", "a number above 0 and at most 1", _real(self.top_p, 0, 1) and self.top_p > 0),
            ("min_p", "a number from 0 to 1", _real(self.min_p, 0, 1)),
            ("seed", "a whole number from 0, or none", self.seed is None or _whole(self.seed)),
            ("stop", "a tuple of texts, none of them empty", _texts(self.stop)),
            # Beyond these bounds logits would leave the range of FP32.
            ("repetition_penalty", "a number from 0.001 to 1000", _real(self.repetition_penalty, 1e-3, 1e3)),
            ("frequency_penalty", "a number from -2 to 2", _real(self.frequency_penalty, -2, 2)),
            ("presence_penalty", "a number from -2 to 2", _real(self.presence_penalty, -2, 2)),
            ("logit_bias", f"a tuple of at most {MAX_LISTED} pairs of different token ids, whole numbers from 0, "
             "and numbers from -100 to 100", _biases(self.logit_bias)),
            ("min_tokens", "a whole number from 0, at most max_tokens",
             _whole(self.min_tokens) and self.min_tokens <= self.max_tokens),
            ("ignore_eos", "true or false", isinstance(self.ignore_eos, bool)),
            ("stop_token_ids", f"a tuple of at most {MAX_LISTED} whole numbers from 0", _ids(self.stop_token_ids)),
            ("logprobs", f"a whole number from 0 to {MAX_LOGPROBS}, or none", _few(self.logprobs)),
            ("prompt_logprobs", f"a whole number from 0 to {MAX_LOGPROBS}, or none", _few(self.prompt_logprobs)),
            ("thinking_tokens", "a whole number from 0, or none",
             self.thinking_tokens is None or _whole(self.thinking_tokens)),
            ("grammar", "a Grammar, or none", self.grammar is None or isinstance(self.grammar, Grammar)),
        ):  # fmt: skip
            if not holds:
                raise ConfigError(f"sampling.{name}: {getattr(self, name)!r} is not allowed; it must be {allowed}")


def _whole(value: object, least: int = 0) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _real(value: object, least: float, most: float) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return number and least <= value <= most  # type: ignore[operator]  # a number by now


def _few(value: object) -> bool:
    return value is None or (_whole(value) and value <= MAX_LOGPROBS)  # type: ignore[operator]


def _texts(value: object) -> bool:
    return isinstance(value, tuple) and len(value) <= MAX_LISTED and all(isinstance(x, str) and x for x in value)


def _ids(value: object) -> bool:
    return isinstance(value, tuple) and len(value) <= MAX_LISTED and all(_whole(index) for index in value)


def _biases(value: object) -> bool:
    if not isinstance(value, tuple) or not all(isinstance(pair, tuple) and len(pair) == 2 for pair in value):
        return False
    ids = tuple(index for index, _ in value)
    return _ids(ids) and len(set(ids)) == len(ids) and all(_real(bias, -100, 100) for _, bias in value)
