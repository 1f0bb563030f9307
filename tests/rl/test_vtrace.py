"""V-trace and generalised advantages against the papers' sums, written out in NumPy."""

import numpy as np
import torch

from seqloom.rl.gae import advantages
from seqloom.rl.vtrace import vtrace

T, B = 6, 3


def drawn() -> tuple[torch.Tensor, ...]:
    torch.manual_seed(0)
    discounts = 0.9 * (torch.rand(T, B) > 0.25).float()
    return 0.7 * torch.randn(T, B), torch.randn(T, B), discounts, torch.randn(T + 1, B)


def test_vtrace_is_the_sum_of_the_paper() -> None:
    log_ratios, rewards, discounts, values = drawn()
    found = vtrace(log_ratios, rewards, discounts, values, rho_bar=0.9, c_bar=0.8)
    ratio, r, gamma, v = (part.double().numpy() for part in (log_ratios.exp(), rewards, discounts, values))
    rho, c = np.minimum(ratio, 0.9), np.minimum(ratio, 0.8)
    targets = np.empty((T + 1, B))
    targets[T] = v[T]
    for b in range(B):
        for s in range(T):  # equation 1 of IMPALA
            targets[s, b] = v[s, b] + sum(
                np.prod(gamma[s:t, b])
                * np.prod(c[s:t, b])
                * rho[t, b]
                * (r[t, b] + gamma[t, b] * v[t + 1, b] - v[t, b])
                for t in range(s, T)
            )
    np.testing.assert_allclose(found.values, targets[:T], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found.advantages, rho * (r + gamma * targets[1:] - v[:T]), rtol=1e-4, atol=1e-5)


def test_on_policy_both_are_returns_until_the_end_of_the_unroll() -> None:
    _, rewards, discounts, values = drawn()
    returns = values[T]
    expected = []
    for reward, discount in zip(rewards.flip(0), discounts.flip(0), strict=True):
        returns = reward + discount * returns
        expected.append(returns)
    on_policy = vtrace(torch.zeros(T, B), rewards, discounts, values)
    torch.testing.assert_close(on_policy.values, torch.stack(expected[::-1]))
    torch.testing.assert_close(advantages(rewards, discounts, values, 1.0), on_policy)


def test_gae_is_the_weighted_sum_of_temporal_differences() -> None:
    _, rewards, discounts, values = drawn()
    found = advantages(rewards, discounts, values, 0.8)
    deltas = rewards + discounts * values[1:] - values[:-1]
    expected = [sum((0.8 ** (t - s)) * discounts[s:t].prod(0) * deltas[t] for t in range(s, T)) for s in range(T)]
    torch.testing.assert_close(found.advantages, torch.stack(expected))  # type: ignore[arg-type]
    torch.testing.assert_close(found.values, found.advantages + values[:-1])
