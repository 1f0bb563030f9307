import math

import pytest

from seqloom.core.config import parse
from seqloom.core.errors import ConfigError
from seqloom.serve.config import Grammar, Sampling


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_tokens", 0),
        ("max_tokens", 2.5),
        ("max_tokens", True),
        ("temperature", -0.1),
        ("temperature", math.nan),
        ("temperature", math.inf),
        ("temperature", "hot"),
        ("top_k", -1),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("min_p", -0.1),
        ("min_p", 2),
        ("seed", -1),
        ("seed", "x"),
        ("stop", "abc"),
        ("stop", ("a", "")),
        ("stop", (3,)),
        ("repetition_penalty", 9e-4),
        ("repetition_penalty", 1001),
        ("frequency_penalty", 2.1),
        ("frequency_penalty", -2.1),
        ("frequency_penalty", math.nan),
        ("presence_penalty", 2.1),
        ("presence_penalty", -2.1),
        ("presence_penalty", True),
        ("logit_bias", ((1, 100.5),)),
        ("logit_bias", ((1, -100.5),)),
        ("logit_bias", ((-1, 0.0),)),
        ("logit_bias", ((1, 0.0), (1, 2.0))),
        ("logit_bias", ((1.5, 0.0),)),
        ("logit_bias", {1: 2.0}),
        ("logit_bias", tuple((index, 0.0) for index in range(1025))),
        ("min_tokens", -1),
        ("min_tokens", 257),
        ("ignore_eos", 1),
        ("stop_token_ids", (-1,)),
        ("stop_token_ids", [1]),
        ("logprobs", -1),
        ("logprobs", 21),
        ("logprobs", True),
        ("prompt_logprobs", 21),
        ("thinking_tokens", -1),
        ("thinking_tokens", 1.0),
        ("grammar", "json"),
    ],
)
def test_a_setting_out_of_bounds_is_refused_by_name(field: str, value: object) -> None:
    with pytest.raises(ConfigError, match=rf"sampling\.{field}: .* must be"):
        Sampling(**{field: value})


def test_settings_at_their_bounds_are_taken() -> None:
    Sampling(
        max_tokens=1, temperature=0, top_k=0, top_p=1, min_p=1, seed=0, stop=("a",), repetition_penalty=1e-3,
        frequency_penalty=2, presence_penalty=-2, logit_bias=((0, -100), (1, 100)), min_tokens=1, ignore_eos=True,
        stop_token_ids=(0,), logprobs=20, prompt_logprobs=0, thinking_tokens=0, grammar=Grammar(kind="json"),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "text", "field"),
    [
        ("yaml", "a", "kind"),
        ("json", "{}", "text"),
        ("regex", "", "text"),
        ("lark", 3, "text"),
        ("json_schema", "", "text"),
    ],
)
def test_a_grammar_that_makes_no_sense_is_refused(kind: str, text: object, field: str) -> None:
    with pytest.raises(ConfigError, match=rf"grammar\.{field}: .* must be"):
        Grammar(kind=kind, text=text)


def test_settings_are_read_from_plain_data() -> None:
    data = {"max_tokens": 5, "top_p": 0.5, "stop": ["a", "b"], "seed": 1}
    assert parse(Sampling, data, "request") == Sampling(max_tokens=5, top_p=0.5, stop=("a", "b"), seed=1)
    nested = {"grammar": {"kind": "regex", "text": "a+"}, "logit_bias": [[3, -1.5]], "stop_token_ids": [2]}
    assert parse(Sampling, nested, "request") == Sampling(
        grammar=Grammar(kind="regex", text="a+"), logit_bias=((3, -1.5),), stop_token_ids=(2,)
    )
    with pytest.raises(ConfigError, match="did you mean 'top_p'"):
        parse(Sampling, {"topp": 0.5}, "request")
    with pytest.raises(ConfigError, match="max_tokens"):
        parse(Sampling, {"max_tokens": 0}, "request")
