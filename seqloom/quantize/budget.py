"""The cheapest choice within a budget, exactly: one option for every variable, least total score, bounded total cost.

    min Σ_v score(v, o_v)    such that    Σ_v cost(v, o_v) <= limit

A Lagrange multiplier m bounds what a partial choice can lead to: its score + m · cost, plus the least of that over the
rest, is at most score + m · limit of the whole. A first choice comes from the relaxed problem, bettered step by step.
Then all partial choices are grown variable by variable, and kept are those that no other beats in both cost and score
and that the bound does not exclude. Among choices of equal score the cheaper wins, then the earlier option.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

_SLACK = 1e-9
"""Relative; sums in another order differ by less, so rounding never excludes the best choice."""


class Option(NamedTuple):
    cost: int
    score: float


def cheapest(variables: Sequence[Sequence[Option]], limit: int) -> list[int]:
    """The option of every variable.

    Args:
        limit: at least the sum of the least costs.
    """
    assert sum(min(option.cost for option in options) for options in variables) <= limit
    multiplier, first = _relaxed(variables, limit)
    known = _bettered(variables, first, limit)
    least_cost = sum(min(option.cost for option in options) for options in variables)  # of the variables to come
    least = sum(min(option.score + multiplier * option.cost for option in options) for options in variables)
    bound = known + multiplier * limit
    bound += _SLACK * (abs(bound) + sum(abs(option.score) for options in variables for option in options))
    cost, score = np.zeros(1, np.int64), np.zeros(1)
    steps: list[tuple[np.ndarray, np.ndarray]] = []
    for options in variables:
        least_cost -= min(option.cost for option in options)
        least -= min(option.score + multiplier * option.cost for option in options)
        costs = (cost[:, None] + np.array([option.cost for option in options])).ravel()
        scores = (score[:, None] + np.array([option.score for option in options])).ravel()
        hopeful = (costs + least_cost <= limit) & (scores + multiplier * costs + least <= bound)
        order = np.flatnonzero(hopeful)
        order = order[np.lexsort((order % len(options), scores[order], costs[order]))]
        lowest = np.minimum.accumulate(scores[order])
        order = order[np.concatenate(([True], scores[order][1:] < lowest[:-1]))]
        cost, score = costs[order], scores[order]
        steps.append((order // len(options), order % len(options)))
    state, chosen = int(np.lexsort((cost, score))[0]), []
    for before, option in reversed(steps):
        chosen.append(int(option[state]))
        state = int(before[state])
    return chosen[::-1]


def _relaxed(variables: Sequence[Sequence[Option]], limit: int) -> tuple[float, list[Option]]:
    """A multiplier whose relaxed choice just keeps the limit, and that choice."""

    def choose(multiplier: float) -> list[Option]:
        return [
            min(options, key=lambda option: (option.score + multiplier * option.cost, option.cost))
            for options in variables
        ]

    def keeps(picks: Sequence[Option]) -> bool:
        return sum(pick.cost for pick in picks) <= limit

    if keeps(picks := choose(0.0)):
        return 0.0, picks
    low, high = 0.0, 1e-30
    while not keeps(choose(high)):
        high *= 16
        if high > 1e30:  # scores so large that no multiplier sways them: the cheapest options are a choice too
            return 0.0, [min(options) for options in variables]
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (low, middle) if keeps(choose(middle)) else (middle, high)
    return high, choose(high)


def _bettered(variables: Sequence[Sequence[Option]], picks: Sequence[Option], limit: int) -> float:
    """The score after the room that a choice leaves is used, one best exchange after another."""
    picks = list(picks)
    while True:
        room = limit - sum(pick.cost for pick in picks)
        exchanges = [
            (option.score - pick.score, index, option)
            for index, (options, pick) in enumerate(zip(variables, picks, strict=True))
            for option in options
            if option.cost - pick.cost <= room and option.score < pick.score
        ]
        if not exchanges:
            return sum(pick.score for pick in picks)
        _, index, option = min(exchanges)
        picks[index] = option
