"""Schedules against the published formulas and torch's own cosine."""

import math

import pytest
import torch

from seqloom.train.config import ScheduleConfig
from seqloom.train.schedules import decay, factor


def curve(steps: int, config: ScheduleConfig) -> list[float]:
    return [factor(step, steps, config) for step in range(steps)]


def test_warm_up_is_linear_and_starts_above_zero() -> None:
    rates = curve(100, ScheduleConfig(kind="constant", warmup_steps=4))
    assert rates == [0.25, 0.5, 0.75, 1.0] + [1.0] * 96


@pytest.mark.parametrize("kind", ["wsd", "cosine", "constant"])
def test_without_warm_up_the_first_step_is_nearly_full(kind: str) -> None:
    assert factor(0, 1000, ScheduleConfig(kind=kind, warmup_steps=0)) > 0.99


def test_wsd_with_minus_sqrt_follows_the_published_formula() -> None:
    steps, final = 1000, 0.01
    rates = curve(steps, ScheduleConfig(warmup_steps=10, decay_fraction=0.25, final_factor=final))
    assert rates[10:750] == [1.0] * 740
    for step in range(750, steps):
        elapsed = (step + 1 - 750) / 250
        assert rates[step] == pytest.approx(final + (1 - math.sqrt(elapsed)) * (1 - final), abs=1e-12)
    assert rates[-1] == pytest.approx(final)


def test_exponential_falls_by_the_same_factor_every_epoch() -> None:
    """Deep Speech 2 divides by 1.2 after each of 20 epochs."""
    rates = curve(2000, ScheduleConfig(kind="exponential", warmup_steps=0, final_factor=1.2**-20))
    for epoch in range(20):
        assert rates[100 * epoch + 99] == pytest.approx(1.2 ** -(epoch + 1))


@pytest.mark.parametrize("shape", ["minus_sqrt", "linear", "cosine"])
def test_decay_goes_from_one_to_zero_and_never_rises(shape: str) -> None:
    values = [decay(index / 100, shape) for index in range(101)]
    assert values[0] == 1
    assert values[-1] == pytest.approx(0, abs=1e-15)
    assert values == sorted(values, reverse=True)


def test_cosine_equals_torchs_own() -> None:
    steps, warmup, final = 40, 5, 0.1
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps - warmup, eta_min=final)
    config = ScheduleConfig(kind="cosine", warmup_steps=warmup, final_factor=final)
    for step in range(warmup, steps):
        optimizer.step()
        scheduler.step()
        assert factor(step, steps, config) == pytest.approx(scheduler.get_last_lr()[0], abs=1e-9)


@pytest.mark.parametrize("kind", ["wsd", "cosine", "constant"])
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_a_run_shorter_than_its_warm_up_stays_within_it(kind: str, steps: int) -> None:
    rates = curve(steps, ScheduleConfig(kind=kind, warmup_steps=50, decay_fraction=1.0))
    assert all(0 < rate <= (step + 1) / 50 for step, rate in enumerate(rates))
