import os
from pathlib import Path
from typing import Any

import pytest

from seqloom.studies import nvfp4
from seqloom.studies.nvfp4 import FORWARD, FP8, FULL, MX, SWITCHED, Options, findings, recipes, study
from seqloom.studies.precision_scales import SCALES
from seqloom.studies.precision_weights import STATIC, AtRest
from study_courses import Quiet, branched, course, looks, narrow_scale, verdicts

RECIPES = recipes(500 / 650)


def rest(**changes: Any) -> AtRest:
    """Weights like those of a trained model."""
    losses = dict(zip(STATIC, (2.0005, 2.006, 2.001, 2.001, 2.001, 2.012, 2.02), strict=True))
    error = {"nvfp4_four_over_six": 0.835, "nvfp4_mse": 0.73}
    mismatch = {"Gaussian": {"nvfp4": 0.13, "nvfp4_2d": 0.0}, "the model's": {"nvfp4": 0.12, "nvfp4_2d": 0.0}}
    plain = {"reference": 2.0, "static": losses, "error": error, "mismatch": mismatch}
    return AtRest([plain | changes])


def test_claims_hold_where_the_data_is_like_the_paper() -> None:
    courses = {
        FP8: course(2.001), FULL: course(2.02), MX: course(2.03), FORWARD: course(2.01), SWITCHED: course(2.004),
    }  # fmt: skip
    found = findings(branched(RECIPES, courses), looks(RECIPES), rest())
    assert set(verdicts(found).values()) == {"reproduced"}
    assert "2.00 times with scales rounded up, 3.33 times rounded down" in found.as_text()
    assert "-1.000% becomes -0.200%, with the forward pass alone -0.500%" in found.as_text()


def test_claims_fail_where_the_data_says_otherwise() -> None:
    courses = {FP8: course(2.05), FULL: course(2.04), MX: course(2.03), SWITCHED: course(2.035)}
    bad = rest(
        static=dict.fromkeys(STATIC, 2.03),
        error={"nvfp4_four_over_six": 0.9, "nvfp4_mse": 0.7},
        mismatch={"Gaussian": {"nvfp4": 0.13, "nvfp4_2d": 1e-9}, "the model's": {"nvfp4": 0.12, "nvfp4_2d": 0.0}},
    )
    assert set(verdicts(findings(branched(RECIPES, courses), looks(RECIPES), bad)).values()) == {"not reproduced"}


def test_what_was_not_trained_is_not_judged() -> None:
    judged = verdicts(findings(branched(RECIPES, {FULL: course(2.02)}), looks(RECIPES), rest()))
    assert judged["C3 gap"] == "reproduced"
    assert {judged[name] for name in ("C3 order", "C4 late switch", "H7 MXFP4 trained")} == {"not measured"}


def test_every_ablation_is_another_recipe_and_the_switch_comes_in_the_last_fifth() -> None:
    assert len({str(recipe) for recipe in RECIPES.values()}) == len(RECIPES)
    assert RECIPES[SWITCHED].switch_at == pytest.approx(620 / 650)


@pytest.mark.skipif(os.environ.get("SEQLOOM_SOAK") != "1", reason="fifteen trainings: run by `make soak`")
def test_the_study_branches_switches_and_rounds_weights(
    texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SCALES, "laptop", narrow_scale(texts))
    monkeypatch.setattr(nvfp4, "SWITCH", 0.5)
    found = study(Options(), tmp_path, Quiet())
    courses = {each["name"]: each for each in found.data["courses"]}
    assert courses.keys() == {"reference", "null 1", "null 2", *RECIPES}
    assert all(not each["ended"] and len(each["losses"]) == 2 for each in courses.values())
    assert courses[SWITCHED]["losses"][0] == courses[FULL]["losses"][0] != courses["reference"]["losses"][0]
    assert courses[SWITCHED]["losses"][1] != courses[FULL]["losses"][1]
    judged = verdicts(found)
    assert judged["C7 two dimensions"] == "reproduced"
    assert judged["C8 four over six"] == "reproduced"  # untrained weights are Gaussian
