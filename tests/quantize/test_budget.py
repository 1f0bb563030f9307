"""The choice under a budget against trying every choice."""

import itertools
import random

import pytest

from seqloom.quantize.budget import Option, cheapest


def best_by_trial(variables: list[list[Option]], limit: int) -> float:
    totals = (
        (sum(option.cost for option in pick), sum(option.score for option in pick))
        for pick in itertools.product(*variables)
    )
    return min(score for cost, score in totals if cost <= limit)


@pytest.mark.parametrize("seed", range(60))
def test_it_is_the_best_of_all(seed: int) -> None:
    draw = random.Random(seed)
    scale = 10.0 ** draw.randrange(-12, 12)
    sizes = [draw.choice([1, 2, 3, 5, 100]) for _ in range(6)]
    # Whole scores from few values make ties; a wider format sometimes has the higher score.
    variables = [[Option(bits * size, scale * draw.randrange(6)) for bits in (9, 16, 32)] for size in sizes]
    least, most = 9 * sum(sizes), 32 * sum(sizes)
    for limit in (least, draw.randrange(least, most), most):
        picks = cheapest(variables, limit)
        chosen = [options[pick] for options, pick in zip(variables, picks, strict=True)]
        assert sum(option.cost for option in chosen) <= limit
        assert sum(option.score for option in chosen) == pytest.approx(
            best_by_trial(variables, limit), abs=1e-9 * scale
        )


def test_among_equal_scores_the_cheaper_wins() -> None:
    assert cheapest([[Option(1, 2.0), Option(2, 2.0)], [Option(5, 1.0), Option(3, 1.0)]], 100) == [0, 1]


def test_many_layers_of_few_shapes_take_no_time() -> None:
    draw = random.Random(0)
    variables = [
        [Option(bits * size, draw.random() / bits) for bits in (9, 16, 32)] for size in (7, 11, 13) for _ in range(60)
    ]
    limit = 10 * 60 * (7 + 11 + 13)
    picks = cheapest(variables, limit)
    assert sum(options[pick].cost for options, pick in zip(variables, picks, strict=True)) <= limit
