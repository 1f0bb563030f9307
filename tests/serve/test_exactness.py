"""Guesses change neither what is drawn nor what is remembered.

What is drawn with guesses has the distribution that a full pass of the model gives, worked out here with nothing but a
softmax. And however many guesses were right, a row goes on as if there had been no others.
"""

from typing import Any

import pytest
import torch
from torch import Tensor

from seqloom.ops.kernels import invariant
from seqloom.serve.config import Sampling
from seqloom.serve.engine import Engine
from seqloom.systems.hybrid_lm.config import MtpConfig
from soak import SOAKING, soak
from tiny_models import make, tokens

VOCABULARY = 16
DRAWS, BATCH = soak(400, 200_000), soak(400, 500)
DRAFTERS = ("mtp", "ngram") if SOAKING else ("mtp",)


class Few:
    """A tokenizer of few ids that are never shown."""

    bos, eos, size = 1, 2, VOCABULARY

    def encode(self, text: str) -> list[int]:
        return []

    def decode(self, ids: list[int]) -> str:
        return ""


@torch.inference_mode()
def pairs(model: Any, prompt: list[int], temperature: float) -> Tensor:
    """Probability of every second and third token after a prompt, [V, V], over all first ones."""
    every = torch.cartesian_prod(torch.arange(VOCABULARY), torch.arange(VOCABULARY))
    texts = torch.cat([torch.tensor(prompt).expand(len(every), -1), every], dim=1)
    p = (model(texts)[:, -3:].double() / temperature).softmax(-1)
    first, second, third = p[0, 0], p[::VOCABULARY, 1], p[:, 2].view(VOCABULARY, VOCABULARY, VOCABULARY)
    return torch.einsum("a,ab,abc->bc", first, second, third)


@pytest.mark.full
@pytest.mark.timeout(soak(120, 3600))
@pytest.mark.parametrize("drafter", DRAFTERS)
def test_guesses_leave_the_distribution_as_it_is(drafter: Any) -> None:
    stats = pytest.importorskip("scipy.stats")
    model = make("mtp", vocab_size=VOCABULARY, pattern="M*-", mtp=MtpConfig(pattern="*-"))
    prompt, temperature = [1, 5, 9, 5, 9, 5], 1.5
    engine = Engine((model, Few()), 32, drafter=drafter)
    settings = {"max_tokens": 3, "temperature": temperature, "ignore_eos": True}
    seen = torch.zeros(VOCABULARY, VOCABULARY, dtype=torch.float64)
    for start in range(0, DRAWS, BATCH):
        sampling = [Sampling(seed=seed, **settings) for seed in range(start, start + BATCH)]
        for answer in engine.generate([prompt] * BATCH, sampling, draft_tokens=2):
            seen[tuple(answer.token_ids[1:3])] += 1
    told = engine.statistics
    assert sum(told.accepted) > DRAWS / 200  # or nothing was tested; n-grams rarely know
    wanted = DRAWS * pairs(model, prompt, temperature)
    assert float(wanted.max()) < DRAWS / 4  # it is spread
    common = wanted >= 5
    observed = torch.cat([seen[common], (DRAWS - seen[common].sum())[None]])
    expected = torch.cat([wanted[common], (DRAWS - wanted[common].sum())[None]])
    assert stats.chisquare(observed.numpy(), expected.numpy()).pvalue > 1e-4


@pytest.mark.parametrize("variant", ["dense", "moe"])
@torch.inference_mode()
def test_any_number_of_right_guesses_leaves_a_row_as_without_them(variant: str) -> None:
    """Two rows that keep another number of tokens of each call, through all pairs of numbers."""
    model, ahead = make(variant), 4
    text = tokens(2, 80, seed=3)
    with invariant():
        fresh = model.new_cache(2, 16, 16, ahead)
        fill(model, fresh, text[:, :10])
        wanted = [[step(model, fresh, row, text[row, 10 + place]) for place in range(60)] for row in range(2)]
        cache = model.new_cache(2, 16, 16, ahead)
        fill(model, cache, text[:, :10])
        at = [10, 10]
        for first in range(1, ahead + 2):
            for second in range(1, ahead + 2):
                kept = [first, second]
                if max(at) + max(kept) > 70:
                    continue
                fed = torch.randint(3, 256, (2, 1 + ahead), generator=torch.Generator().manual_seed(sum(at)))
                for row in range(2):
                    fed[row, : kept[row]] = text[row, at[row] : at[row] + kept[row]]
                    assert cache.reserve(row, 1 + ahead)
                hidden, _ = model.hidden(fed, states=cache.states(0, 2, 1 + ahead, guessed=True))
                cache.keep(0, kept)
                for row in range(2):
                    for place in range(kept[row]):
                        assert torch.equal(hidden[row, place], wanted[row][at[row] - 10 + place]), (kept, row, place)
                    at[row] += kept[row]
                assert cache.lengths == at
    whole = model.hidden(text)[0]
    for row in range(2):
        torch.testing.assert_close(torch.stack(wanted[row]), whole[row, 10:70], atol=1e-4, rtol=1e-4)


def fill(model: Any, cache: Any, texts: Tensor) -> None:
    """Both rows read their beginning."""
    for row in range(len(texts)):
        cache.clear(row)
        assert cache.reserve(row, texts.shape[1])
    model.hidden(texts, states=cache.states(0, len(texts), texts.shape[1]))


def step(model: Any, cache: Any, row: int, token: Tensor) -> Tensor:
    """One token of one row; its hidden state."""
    assert cache.reserve(row, 1)
    hidden, _ = model.hidden(token.view(1, 1), states=cache.states(row, 1, 1))
    return hidden[0, 0]
