"""Measures of a language model."""

import math

import pytest

from seqloom.metrics.language import bits_per_byte, perplexity


def test_a_uniform_guess_over_bytes_is_eight_bits_and_perplexity_256() -> None:
    nats = 10 * math.log(256)
    assert bits_per_byte(nats, 10) == pytest.approx(8)
    assert perplexity(nats, 10) == pytest.approx(256)


def test_bits_per_byte_does_not_depend_on_the_split_into_tokens() -> None:
    nats = 12.5
    assert bits_per_byte(nats, 20) == pytest.approx(12.5 / 20 / math.log(2))
    assert perplexity(nats, 5) != perplexity(nats, 10)


def test_a_hopeless_model_is_infinitely_perplexed() -> None:
    assert perplexity(1e6, 1) == math.inf
