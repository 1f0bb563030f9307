"""Row order: permutations, shares, phases."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from seqloom.data.mixture import TABLE_LENGTH, InOrder, Mixture, Permutation


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 400), st.integers(0, 2**64 - 1))
def test_a_permutation_is_one(size: int, key: int) -> None:
    permute = Permutation(size, key)
    assert sorted(map(permute, range(size))) == list(range(size))


@pytest.mark.parametrize("size", [5, 16, 33])
def test_permutations_are_uniform(size: int) -> None:
    """Over many keys every index goes everywhere equally often, and pairs of neighbours do not stay together."""
    trials = 4000
    places = np.array([[Permutation(size, key)(index) for index in (0, 1, size - 1)] for key in range(trials)])
    for column in places.T:
        assert chisquare(np.bincount(column, minlength=size)).pvalue > 1e-4
    distances = (places[:, 1] - places[:, 0]) % size
    assert chisquare(np.bincount(distances, minlength=size)[1:]).pvalue > 1e-4


def test_large_permutations_cost_nothing() -> None:
    permute = Permutation(10**12, 3)
    assert len({permute(index) for index in range(2000)}) == 2000


def test_one_source_is_seen_whole_every_epoch_in_a_new_order() -> None:
    mixture = Mixture([50], [(0, [1.0])], seed=1)
    epochs = [[mixture.locate(position) for position in range(start, start + 50)] for start in (0, 50, 100)]
    for epoch in epochs:
        assert sorted(epoch) == [(0, row) for row in range(50)]
    assert epochs[0] != epochs[1] != epochs[2]
    assert len(mixture) == 50


def test_the_order_follows_the_seed_and_nothing_else() -> None:
    def order(seed: int) -> list[tuple[int, int]]:
        mixture = Mixture([70, 30], [(0, [1, 2]), (40, [1, 0])], seed)
        return [mixture.locate(position) for position in range(90)]

    assert order(5) == order(5)
    assert order(5) != order(6)
    mixture = Mixture([70, 30], [(0, [1, 2]), (40, [1, 0])], 5)
    assert [mixture.locate(position) for position in reversed(range(90))] == order(5)[::-1]


@settings(max_examples=25, deadline=None)
@given(st.lists(st.floats(0.001, 1000), min_size=1, max_size=9))
def test_shares_are_exact_to_a_slot_and_no_source_is_forgotten(weights: list[float]) -> None:
    mixture = Mixture([10] * len(weights), [(0, weights)], seed=0)
    drawn = np.array(mixture.drawn(TABLE_LENGTH * 100)) / 100
    assert abs(drawn - np.array(weights) / sum(weights) * TABLE_LENGTH).max() <= len(weights)
    assert drawn.min() >= 0.99


def test_shares_hold_over_short_stretches() -> None:
    mixture = Mixture([10_000, 10_000], [(0, [3, 1])], seed=0)
    first = [mixture.locate(position)[0] for position in range(400)]
    assert 70 <= sum(first) <= 130


def test_drawn_counts_what_locate_gives() -> None:
    mixture = Mixture([13, 7, 29], [(0, [1, 2, 3]), (100, [1, 0, 1]), (3000, [0, 1, 0])], seed=2)
    counts = np.zeros(3, dtype=int)
    for position in range(7000):
        assert mixture.drawn(position) == counts.tolist()
        counts[mixture.locate(position)[0]] += 1


def test_phases_switch_weights_and_sources_continue_where_they_stood() -> None:
    mixture = Mixture([40, 40], [(0, [1, 1]), (60, [1, 0])], seed=3)
    order = [mixture.locate(position) for position in range(120)]
    assert {source for source, _ in order[60:]} == {0}
    assert {source for source, _ in order[:60]} == {0, 1}
    first = [row for source, row in order if source == 0]
    assert sorted(first[:40]) == sorted(first[40:80]) == list(range(40))


def test_a_phase_that_starts_at_once_replaces_the_first() -> None:
    mixture = Mixture([5, 5], [(0, [1, 0]), (0, [0, 1])], seed=0)
    assert {mixture.locate(position)[0] for position in range(20)} == {1}


def test_in_order_gives_everything_once() -> None:
    order = InOrder([2, 1, 3])
    expected = [(0, 0), (0, 1), (1, 0), (2, 0), (2, 1), (2, 2)]
    assert [order.locate(position) for position in range(len(order))] == expected
