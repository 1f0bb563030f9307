"""Tokens of many places at once, beside the op that draws one after the other."""

import itertools
import random

import pytest
import torch

from seqloom.ops.token_choice import Kind, Races, signed, token_choice
from seqloom.ops.token_draw import token_draw

V, T = 301, 5


@pytest.mark.parametrize("kind", ["race", "filtered"])
def test_the_tokens_of_single_draws(kind: Kind) -> None:
    generator, keys = torch.Generator().manual_seed(0), random.Random(0)
    filters = [(0, 1.0, 0.0)]
    if kind == "filtered":
        filters += itertools.product((0, 1, 7, 300, 4000), (0.2, 0.9, 1.0), (0.0, 0.05, 1.0))
    rows = [(sharpness, *each) for each in filters for sharpness in (0.0, 0.6, 1.0, 4.0)]
    logits = torch.randn(len(rows), T, V, generator=generator).mul_(3).round_(decimals=1)  # many are equal
    names = [[keys.randrange(2**64) for _ in range(T)] for _ in rows]
    sharpness, k, share, floor = (torch.tensor(column) for column in zip(*rows, strict=True))
    races = Races(
        sharpness.double(), k, share.double(), floor.double(), torch.tensor([[*map(signed, n)] for n in names])
    )
    chosen = token_choice(logits, races, kind)
    for (sharp, *each), row, name, tokens in zip(rows, logits, names, chosen.tolist(), strict=True):
        for place, key, token in zip(row, name, tokens, strict=True):
            largest = float(place.max())
            assert token == (token_draw(place, largest, sharp, *each, key) if sharp else int(place.argmax()))
    assert len(set(chosen.flatten().tolist())) > 15


@pytest.mark.parametrize("kind", ["greedy", "race", "filtered"])
def test_what_is_not_finite_has_no_token(kind: Kind) -> None:
    logits = torch.zeros(3, 1, V)
    logits[0, 0, 4], logits[1, 0, 5] = torch.nan, torch.inf
    ones = torch.ones(3).double()
    chosen = token_choice(logits, Races(ones, torch.zeros(3).long(), ones, 0 * ones, torch.arange(3)[:, None]), kind)
    assert chosen[:2].tolist() == [[-1], [-1]]
    assert chosen[2] >= 0
