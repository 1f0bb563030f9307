import math

import pytest
import torch
from scipy.stats import chisquare
from transformers.generation.logits_process import (
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from seqloom.core.errors import NumericsError
from seqloom.serve.config import Sampling
from seqloom.serve.sampling import Sampler, probabilities


def logits_of(seed: int, size: int = 300) -> torch.Tensor:
    return 3 * torch.randn(size, generator=torch.Generator().manual_seed(seed))


def distribution(logits: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    p, ids = probabilities(logits, sampling)
    assert (p > 0).all()
    return torch.zeros_like(logits).index_put_((ids,), p)


def oracle(logits: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    scores = logits[None].double()
    warpers = [TemperatureLogitsWarper(float(sampling.temperature))]
    warpers += [TopKLogitsWarper(sampling.top_k)] if sampling.top_k else []
    warpers += [TopPLogitsWarper(sampling.top_p)] if sampling.top_p < 1 else []
    warpers += [MinPLogitsWarper(sampling.min_p)] if sampling.min_p else []
    for warp in warpers:
        scores = warp(None, scores)
    return scores.softmax(-1)[0]


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(),
        Sampling(temperature=30.0, top_p=0.95),
        Sampling(temperature=0.3),
        Sampling(top_k=7),
        Sampling(top_k=5000),
        Sampling(top_p=0.8),
        Sampling(top_p=1e-6),
        Sampling(min_p=0.05),
        Sampling(min_p=1.0),
        Sampling(temperature=1.7, top_k=40, top_p=0.9, min_p=0.02),
        Sampling(temperature=0.7, top_k=3, top_p=0.5, min_p=0.3),
    ],
    ids=repr,
)
@pytest.mark.parametrize("size", [10, 300, 3000])
def test_filters_equal_those_of_transformers(sampling: Sampling, size: int) -> None:
    for seed in range(10):
        logits = logits_of(seed, size)
        expected = oracle(logits, sampling).float()
        torch.testing.assert_close(distribution(logits, sampling), expected, rtol=1e-4, atol=1e-9)


def test_ties_with_the_kth_token_stay() -> None:
    p = distribution(torch.tensor([1.0, 2.0, 1.0, 0.0]), Sampling(top_k=2))
    assert (p > 0).tolist() == [True, True, True, False]


def test_top_p_keeps_the_token_that_crosses_the_mass() -> None:
    p = torch.tensor([0.5, 0.3, 0.15, 0.05])
    assert (distribution(p.log(), Sampling(top_p=0.75)) > 0).tolist() == [True, True, False, False]
    assert (distribution(p.log(), Sampling(top_p=0.85)) > 0).tolist() == [True, True, True, False]


@pytest.mark.parametrize("temperature", [0.0, 5e-324, 1e-30])
def test_no_temperature_is_too_low(temperature: float) -> None:
    logits = logits_of(0)
    sampling = Sampling(temperature=temperature)
    p, ids = probabilities(logits, sampling)
    assert ids[p.argmax()] == logits.argmax()
    assert p.max() == 1
    assert Sampler(sampling).draw(logits, 3) == logits.argmax()


def test_draws_follow_the_probabilities() -> None:
    logits = logits_of(1, size=12)
    sampling = Sampling(temperature=2.5, top_k=9, seed=5)
    p = distribution(logits, sampling).double()
    sampler = Sampler(sampling)
    counts = torch.bincount(torch.tensor([sampler.draw(logits, index) for index in range(4000)]), minlength=12)
    assert counts[p == 0].sum() == 0
    assert chisquare(counts[p > 0], 4000 * p[p > 0] / p.sum()).pvalue > 1e-4


def test_a_draw_depends_on_seed_and_place_alone() -> None:
    logits = [logits_of(seed) for seed in range(30)]
    forward = Sampler(Sampling(seed=3))
    backward = Sampler(Sampling(seed=3))
    first = [forward.draw(row, index) for index, row in enumerate(logits)]
    assert first == [backward.draw(logits[index], index) for index in reversed(range(30))][::-1]
    assert first != [Sampler(Sampling(seed=4)).draw(row, index) for index, row in enumerate(logits)]
    flat = torch.zeros(1000)
    assert len({forward.draw(flat, index) for index in range(30)}) > 20


def test_without_a_seed_every_request_has_its_own() -> None:
    flat = torch.zeros(10_000)
    assert len({Sampler(Sampling()).draw(flat, 0) for _ in range(5)}) > 1


def test_two_distributions_with_the_same_noise_agree_as_often_as_promised() -> None:
    p, q = logits_of(1, size=20), logits_of(1, size=20) + 0.3 * logits_of(2, size=20)
    distance = 0.5 * (p.softmax(-1) - q.softmax(-1)).abs().sum().item()
    sampler = Sampler(Sampling(seed=1))
    agreed = sum(sampler.draw(p, index) == sampler.draw(q, index) for index in range(2000)) / 2000
    assert 0.1 < distance < 0.5
    assert agreed > (1 - distance) / (1 + distance) - 0.03


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_not_finite_are_named(bad: float, temperature: float) -> None:
    with pytest.raises(NumericsError, match="token 6"):
        Sampler(Sampling(temperature=temperature)).draw(torch.tensor([0.0, bad, 1.0]), 6)
