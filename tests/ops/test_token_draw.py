import math

import numpy as np
import pytest
import torch
from scipy.stats import chisquare, kstest

from seqloom.ops.native.build import why_not
from seqloom.ops.native.token_draw import cut_native, mass_native, race_native
from seqloom.ops.token_draw import (
    EVERYTHING,
    Cut,
    cut_reference,
    race_reference,
    survivors,
    token_cut,
    token_draw,
    token_mass,
    uniforms,
)


def logits_of(seed: int, size: int, spread: float = 3.0, step: float = 0.0) -> torch.Tensor:
    logits = spread * torch.randn(size, generator=torch.Generator().manual_seed(seed))
    return (logits / step).round() * step if step else logits


def test_noise_is_that_of_splitmix() -> None:
    """The first numbers for seed 1234567 as published with the generator (Rosetta Code, Vigna's C code)."""
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    expected = [((number >> 12) + 0.5) / 2**52 for number in published]
    assert uniforms(1234567, np.arange(4)).tolist() == expected


def test_noise_of_one_token_does_not_depend_on_which_others_have_some() -> None:
    every = uniforms(7, np.arange(5000))
    some = np.array([4999, 3, 77])
    assert (uniforms(7, some) == every[some]).all()
    assert kstest(every, "uniform").pvalue > 1e-4
    for key in (8, 2**64 - 1):
        assert abs(np.corrcoef(every, uniforms(key, np.arange(5000)))[0, 1]) < 0.06


def test_a_cut_keeps_what_the_definition_keeps() -> None:
    p = torch.tensor([0.1, 0.3, 0.3, 0.05, 0.25]).log()
    top = p.max().item()
    assert survivors(p, cut_reference(p, top, 1.0, 0, 0.2)).tolist() == [1]
    assert survivors(p, cut_reference(p, top, 1.0, 0, 0.31)).tolist() == [1, 2]
    assert survivors(p, cut_reference(p, top, 1.0, 0, 0.61)).tolist() == [1, 2, 4]
    assert survivors(p, cut_reference(p, top, 1.0, 1, 1.0)).tolist() == [1, 2]  # a tie with the k-th
    assert survivors(p, cut_reference(p, top, 1.0, 3, 0.4)).tolist() == [1, 2]
    assert survivors(p, token_cut(p, top, 1.0, 5, 1.0)).tolist() == [0, 1, 2, 3, 4]


CASES = [
    (size, spread, step, sharpness)
    for size in (1, 7, 300, 20_000)
    for spread, step in ((3.0, 0.0), (3.0, 0.5), (1e-3, 0.0), (40.0, 0.0))
    for sharpness in (1.0, 0.3, 1e20)
]


@pytest.fixture
def library() -> None:
    if reason := why_not():
        pytest.skip(reason)


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize(("size", "spread", "step", "sharpness"), CASES)
def test_native_is_the_reference(size: int, spread: float, step: float, sharpness: float) -> None:
    for seed in range(2):
        logits = logits_of(seed, size, spread, step)
        if seed % 2:
            logits[torch.rand(size, generator=torch.Generator().manual_seed(seed)) < 0.5] = -math.inf
            logits[seed % size] = 1.0
        top = logits.max().item()
        weight = ((logits.double() - top) * sharpness).exp()
        assert mass_native(logits, top, sharpness) == pytest.approx(weight.sum().item(), rel=1e-5)
        for k in (0, 1, 20, size // 2):
            for share in (1e-9, 0.5, 0.9, 1.0):
                if not 0 <= k < size or (k == 0 and share == 1):
                    continue
                expected, found = (
                    cut_reference(logits, top, sharpness, k, share),
                    cut_native(logits, top, sharpness, k, share),
                )
                if expected != found:  # then the mass at the cut is the wanted one to rounding
                    kept = [weight[survivors(logits, Cut(*cut))].sum().item() for cut in (expected, found)]
                    total = weight[survivors(logits, cut_reference(logits, top, sharpness, k, 1.0))].sum().item()
                    assert k == 0 or share < 1
                    assert abs(kept[0] - kept[1]) <= 1e-5 * total or min(kept) >= share * total * (1 - 1e-5)
                for key in (seed, 2**64 - 1 - seed):
                    assert race_native(logits, top, sharpness, expected, key) == race_reference(
                        logits, top, sharpness, expected, key
                    )
        for key in range(20):
            assert race_native(logits, top, sharpness, EVERYTHING, key) == race_reference(
                logits, top, sharpness, EVERYTHING, key
            )


@pytest.mark.parametrize("form", ["torch", "native"])
def test_a_race_is_won_in_proportion_to_the_weights(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if form == "native" and (reason := why_not()):
        pytest.skip(reason)
    monkeypatch.setenv("SEQLOOM_KERNELS", f"token_draw={form}")
    logits = logits_of(3, 40, 1.5)
    top = logits.max().item()
    won = np.zeros(40)
    for key in range(1000):
        won[token_draw(logits, top, 1.0, 0, 1.0, 0.0, key)] += 1
    assert chisquare(won, 1000 * logits.double().softmax(0).numpy()).pvalue > 1e-4


def test_the_portable_mass_is_the_sum(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEQLOOM_KERNELS", "token_draw=torch")
    logits = logits_of(0, 1000)
    top = logits.max().item()
    assert token_mass(logits, top, 0.5) == pytest.approx(((logits.double() - top) / 2).exp().sum().item(), rel=1e-5)
