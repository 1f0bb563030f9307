import pytest

from seqloom.core.errors import ConfigError
from seqloom.nn.pattern import layer_names, parse_pattern


def test_every_spelling_gives_the_same_pattern():
    assert parse_pattern("M-M*E") == "M-M*E"
    assert parse_pattern("M-|M*|E") == "M-M*E"
    assert parse_pattern(["mamba", "mlp", "mamba", "attention", "moe"]) == "M-M*E"
    assert parse_pattern(["linear_attention", "mlp", "linear_attention", "full_attention", "moe"]) == "M-M*E"
    assert parse_pattern(layer_names("M-M*E")) == "M-M*E"


@pytest.mark.parametrize(
    ("spelling", "told"),
    [
        ("M-X*", "character 2 of 'M-X\\*' is 'X'"),
        (["mamba", "rwkv"], "'rwkv'"),
        ("", "at least one"),
        ("||", "at least one"),
    ],
)
def test_what_is_wrong_is_named(spelling, told):
    with pytest.raises(ConfigError, match=told):
        parse_pattern(spelling)
