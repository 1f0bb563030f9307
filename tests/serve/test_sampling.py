import math

import pytest
import torch
from scipy.stats import chisquare
from serve.draw_chances import probabilities
from transformers.generation.logits_process import (
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from seqloom.core.errors import NumericsError
from seqloom.serve.config import Sampling
from seqloom.serve.sampling import draw, logprobs, most_likely, on_cpu


def logits_of(seed: int, size: int = 300) -> torch.Tensor:
    return 3 * torch.randn(size, generator=torch.Generator().manual_seed(seed))


def distribution(logits: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    p, ids = probabilities(logits, sampling)
    assert (p > 0).all()
    return torch.zeros_like(logits).index_put_((torch.from_numpy(ids),), torch.from_numpy(p).float())


def drawn(logits: torch.Tensor, sampling: Sampling, place: int) -> int:
    assert sampling.seed is not None
    on = on_cpu(logits)
    return draw(on, most_likely(on, f"token {place}"), sampling, sampling.seed, place)


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
    sampling = Sampling(temperature=temperature, seed=1)
    p, ids = probabilities(logits, sampling)
    assert ids[p.argmax()] == logits.argmax()
    assert p.max() == 1
    assert drawn(logits, sampling, 3) == logits.argmax()


def test_draws_follow_the_probabilities() -> None:
    logits = logits_of(1, size=12)
    sampling = Sampling(temperature=2.5, top_k=9, seed=5)
    p = distribution(logits, sampling).double()
    counts = torch.bincount(torch.tensor([drawn(logits, sampling, place) for place in range(1500)]), minlength=12)
    assert counts[p == 0].sum() == 0
    assert chisquare(counts[p > 0], 1500 * p[p > 0] / p.sum()).pvalue > 1e-4


def test_a_draw_depends_on_seed_and_place_alone() -> None:
    flat = torch.zeros(1000)
    first = [drawn(flat, Sampling(seed=3), place) for place in range(30)]
    assert first == [drawn(flat, Sampling(seed=3), place) for place in reversed(range(30))][::-1]
    assert first != [drawn(flat, Sampling(seed=4), place) for place in range(30)]
    assert len(set(first)) > 20


def test_two_distributions_with_the_same_noise_agree_as_often_as_promised() -> None:
    p, q = logits_of(1, size=20), logits_of(1, size=20) + 0.3 * logits_of(2, size=20)
    distance = 0.5 * (p.softmax(-1) - q.softmax(-1)).abs().sum().item()
    sampling = Sampling(seed=1)
    agreed = sum(drawn(p, sampling, place) == drawn(q, sampling, place) for place in range(1000)) / 1000
    assert 0.1 < distance < 0.5
    assert agreed > (1 - distance) / (1 + distance) - 0.03


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_logits_that_are_not_finite_are_named(bad: float) -> None:
    with pytest.raises(NumericsError, match="token 6"):
        most_likely(on_cpu(torch.tensor([0.0, bad, 1.0])), "token 6 of the answer")


def test_logprobs_are_those_of_the_whole_vocabulary() -> None:
    logits = logits_of(4, 3000).bfloat16()  # with ties
    expected = logits.float().log_softmax(-1)
    on = on_cpu(logits)
    logprob, top = logprobs(on, int(on.argmax()), 17, 20)
    assert logprob == pytest.approx(expected[17].item(), abs=1e-5)
    values, _ = expected.topk(20)
    assert [value for _, value in top] == pytest.approx(values.tolist(), abs=1e-5)
    assert all(value == pytest.approx(expected[index].item(), abs=1e-5) for index, value in top)
    assert logprobs(on, int(on.argmax()), 17, 0)[1] == []
