import math

import pytest

from seqloom.core.config import parse
from seqloom.core.errors import ConfigError
from seqloom.serve.config import Sampling


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
    ],
)
def test_a_setting_out_of_bounds_is_refused_by_name(field: str, value: object) -> None:
    with pytest.raises(ConfigError, match=rf"sampling\.{field}: .* must be"):
        Sampling(**{field: value})


def test_settings_are_read_from_plain_data() -> None:
    data = {"max_tokens": 5, "top_p": 0.5, "stop": ["a", "b"], "seed": 1}
    assert parse(Sampling, data, "request") == Sampling(max_tokens=5, top_p=0.5, stop=("a", "b"), seed=1)
    with pytest.raises(ConfigError, match="did you mean 'top_p'"):
        parse(Sampling, {"topp": 0.5}, "request")
    with pytest.raises(ConfigError, match="max_tokens"):
        parse(Sampling, {"max_tokens": 0}, "request")
