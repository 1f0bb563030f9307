"""Few warnings, at the right time, and each of them once."""

import random

import pytest

from seqloom.train.early_warning import BEGINNING, FIRST_STEPS, MAX_VIO, SILENT, UNEVEN, EarlyWarning


@pytest.fixture
def said() -> list[str]:
    return []


def look(warning: EarlyWarning, first: int, values: list[float], name: str) -> None:
    for step, value in enumerate(values, start=first):
        warning.look({"step": step, name: value})


@pytest.mark.parametrize("quantity", ["output_norm", "logit_max"])
def test_twofold_growth_is_told_once_and_again_when_it_doubles(quantity: str, said: list[str]) -> None:
    warning = EarlyWarning(said.append)
    name = f"layers.3.mixer.{quantity}"
    values = [10.0] * BEGINNING + [19.0, 21.0, 22.0, 39.0, 43.0]
    look(EarlyWarning(said.append), FIRST_STEPS - len(values), values, name)
    assert said == []  # looked at often, the beginning has as many measurements
    look(warning, FIRST_STEPS, values, name)
    told = FIRST_STEPS + BEGINNING + 1
    assert said == [
        f"step {told}: {name} is 2.1 times its running median, at 21; diverging runs begin like this",
        f"step {told + 3}: {name} is 4.3 times its running median, at 43; diverging runs begin like this",
    ]


def test_growth_of_many_layers_is_one_message_about_the_worst(said: list[str]) -> None:
    warning = EarlyWarning(said.append)
    for step in range(FIRST_STEPS, FIRST_STEPS + BEGINNING):
        warning.look({"step": step, "a.output_norm": 1.0, "b.output_norm": 1.0, "c.output_norm": 1.0})
    warning.look({"step": 999, "a.output_norm": 3.0, "b.output_norm": 5.0, "c.output_norm": 1.0})
    assert len(said) == 1
    assert said[0].startswith(
        "step 999: b.output_norm is 5.0 times its running median, at 5, and of 2 layers the fastest; "
    )


def test_a_run_that_warms_up_wavers_and_settles_is_left_in_peace(said: list[str]) -> None:
    warning, draw = EarlyWarning(said.append), random.Random(0)
    rising = [10 * (1 - 0.93 ** (step + 1)) * draw.uniform(0.9, 1.1) for step in range(300)]
    look(warning, 1, rising, "layers.0.output_norm")
    look(warning, 1, [draw.uniform(1, 3.9) for _ in range(300)], "layers.1.gate.max_vio")
    look(warning, 1, [draw.uniform(0.1, 50) for _ in range(300)], "layers.1.gradient_norm")
    assert said == []


def test_values_that_are_not_finite_or_zero_end_nothing(said: list[str]) -> None:
    warning = EarlyWarning(said.append)
    look(warning, 1, [0.0] * 40 + [float("nan"), float("inf"), 0.0], "a.output_norm")
    assert said == []


def test_a_router_that_stays_uneven_is_told_once_each_time(said: list[str]) -> None:
    warning = EarlyWarning(said.append)
    uneven = [MAX_VIO + 1] * (UNEVEN + 5)
    look(warning, 1, [*uneven[: UNEVEN - 1], 1.0, *uneven, 1.0, *uneven], "layers.1.gate.max_vio")
    assert len(said) == 2
    assert f"layers.1.gate.max_vio was above {MAX_VIO:g} {UNEVEN} times in a row" in said[0]


def test_a_silent_layer_is_told_after_some_measurements(said: list[str]) -> None:
    warning = EarlyWarning(said.append)
    look(warning, 1, [0.0] * (SILENT - 1) + [1e-30] + [0.0] * (SILENT + 4), "layers.2.gradient_norm")
    assert said == [
        f"step {2 * SILENT}: layers.2.gradient_norm was exactly zero {SILENT} times in a row; this layer does not learn"
    ]
