"""Axes have round ticks, and thinning loses no peak and no gap."""

import math
import random

import numpy as np
import pytest

from seqloom.core.charts import MARKS, Axis, Point, shades, smooth, thin


@pytest.mark.parametrize(
    ("values", "labels"),
    [
        ([0, 240], ["0", "50", "100", "150", "200"]),
        ([1, 2, 3], ["1", "2", "3"]),
        ([3.2, 8.4], ["4", "5", "6", "7", "8"]),
        ([0.0, 0.006], ["0", "0.001", "0.002", "0.003", "0.004", "0.005", "0.006"]),
        ([0, 2_000_000], ["0", "500k", "1M", "1.5M", "2M"]),
        ([1000.0, 1000.3], ["1k", "1.00005k", "1.0001k", "1.00015k", "1.0002k", "1.00025k", "1.0003k"]),
    ],
)
def test_ticks_are_round_and_told_apart(values: list[float], labels: list[str]) -> None:
    assert [label for _, label in Axis(values).ticks()] == labels


@pytest.mark.parametrize(
    ("values", "labels"),
    [
        ([1, 100_000], ["1", "10", "100", "1k", "10k", "100k"]),
        ([1, 10], ["1", "2", "5", "10"]),
        ([1e-12, 1e12], ["1e-12", "1e-8", "0.0001", "1", "10k", "100M", "1T"]),
        ([3.1, 4.2], ["3.2", "3.4", "3.6", "3.8", "4", "4.2"]),
    ],
)
def test_logarithmic_ticks(values: list[float], labels: list[str]) -> None:
    assert [label for _, label in Axis(values, log=True).ticks()] == labels


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("values", [[], [5.0], [0.0], [-3.0, -3.0], [1e-300, 2e-300], [-1e99, 1e99], [math.nan, 1e308]])
def test_any_range_has_ticks_within_it(values: list[float], log: bool) -> None:
    axis = Axis(values, log)
    ticks = axis.ticks()
    assert len(ticks) <= 12
    assert all(-1e-6 <= place <= 1 + 1e-6 for place, _ in ticks)


def test_places_on_an_axis() -> None:
    axis = Axis([10, 1000], log=True)
    assert axis.shares(np.array([10.0, 100.0, 1000.0])) == pytest.approx([0, 0.5, 1])
    assert np.isnan(axis.shares(np.array([0, -1, math.nan, math.inf, 1e200]))).all()
    assert Axis([0, 10], margin=0.1).shares(np.array([0.0, 5.0])) == pytest.approx([1 / 12, 0.5])


def test_thinning_keeps_ends_peaks_and_gaps() -> None:
    draw = random.Random(0)
    points: list[Point] = [(float(x), draw.random()) for x in range(20_000)]
    points[3_234], points[17_234] = (3_234.0, 50.0), (17_234.0, -50.0)
    points[10_000] = (10_000.0, None)
    thinned = thin(points, Axis([x for x, _ in points]))
    assert len(thinned) <= 5 * MARKS
    assert [tuple(thinned[0]), tuple(thinned[-1])] == [points[0], points[-1]]
    assert {points[3_234], points[17_234]} <= {(x, y) for x, y in thinned.tolist()}
    assert thinned[np.isnan(thinned[:, 1]), 0].tolist() == [10_000]
    assert (np.diff(thinned[:, 0]) > 0).all()


def test_thinning_follows_the_axis() -> None:
    x = np.arange(1.0, 100_001.0)
    points = np.stack([x, np.ones_like(x)], axis=1)
    assert (thin(points, Axis(x))[:, 0] < 1000).sum() < 20
    assert (thin(points, Axis(x, log=True))[:, 0] < 1000).sum() > 150


def test_few_points_stay_as_they_are() -> None:
    points: list[Point] = [(2.0, 1.0), (1.0, None), (3.0, math.nan)]
    assert thin(points, Axis([1, 3]))[:, 0].tolist() == [1.0, 2.0, 3.0]
    assert len(thin([], Axis([]))) == 0


def test_smoothing_starts_at_the_first_value_and_follows() -> None:
    points: list[Point] = [(0.0, 4.0), (1.0, None), *((float(x), 2.0) for x in range(2, 200))]
    smoothed = smooth(points, share=0.05)
    assert smoothed[0].tolist() == [0.0, 4.0]
    assert np.isnan(smoothed[1, 1])
    assert smoothed[-1, 1] == pytest.approx(2.0, abs=1e-3)
    assert 2 < smoothed[5, 1] < 4
    assert smooth([(0.0, 1.0), (1.0, 3.0)]).tolist() == [[0.0, 1.0], [1.0, 3.0]]


def test_many_points_are_smoothed_in_blocks() -> None:
    x = np.arange(100_000.0)
    y = 5 + np.random.default_rng(0).normal(size=len(x))
    y[:60], y[70] = np.nan, np.inf
    smoothed = smooth(np.stack([x, y], axis=1))
    assert len(smoothed) == 2000
    assert np.isnan(smoothed[0, 1])
    assert smoothed[-1, 0] == x[-1]
    assert smoothed[200:, 1] == pytest.approx(5, abs=0.1)


def test_shades_compare_with_the_median_of_the_row() -> None:
    assert shades([1.0, 1.0, 1.0, 2.0, 4.0, 100.0, 0.5, 0.1, None], "relative") == [0, 0, 0, 2, 4, 4, -2, -4, None]
    assert shades([0.0, 0.5, 1.0, 7.0, math.nan], "share") == [0, 4, 8, 8, None]
    assert shades([0.0, 0.0, 3.0], "relative") == [0, 0, 4]
    assert shades([None, None], "relative") == [None, None]
