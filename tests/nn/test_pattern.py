import pytest

from seqloom.core.errors import ConfigError
from seqloom.nn.pattern import layer_names, parse_pattern, split_depths


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


def test_prediction_blocks_follow_a_slash():
    assert split_depths("MEME") == ("MEME", None, 0)
    assert split_depths("MEME/*E") == ("MEME", "*E", 1)
    assert split_depths("ME|ME/*|E/*E") == ("MEME", "*E", 2)


@pytest.mark.parametrize(
    ("spelling", "told"),
    [
        ("ME/*E/*-", "has the prediction blocks '\\*E' and '\\*-'; they must be equal"),
        ("ME/", "at least one"),
        ("/*E", "at least one"),
        ("ME/*X", "character 1 of '\\*X' is 'X'"),
    ],
)
def test_what_is_wrong_with_blocks_is_named(spelling, told):
    with pytest.raises(ConfigError, match=told):
        split_depths(spelling)
