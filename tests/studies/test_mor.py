from pathlib import Path

import pytest

from seqloom.studies import mor
from seqloom.studies.mor import CHOSEN, LADDER, RECIPES, TENSOR, THRESHOLDS, Counted, Options, findings, study
from seqloom.studies.precision_scales import SCALES
from seqloom.studies.precision_shares import shares, uses
from study_courses import Quiet, branched, course, looks, narrow_scale, verdicts

SHAPES = {"a": (4, 2), "b": (2, 4)}
FP8, BF16 = {"e4m3": 1, "bf16": 0}, {"e4m3": 0, "bf16": 1}


def of(product: str, operand: str) -> str:
    return f"{product}.{operand}"


def events(**not_fp8: tuple[str, str]) -> dict[tuple[str, str], dict[str, int]]:
    """A step of two layers in which all uses are FP8 but those named, one for a layer."""
    roles = [of(p, o) for p, pair in (("forward", "xw"), ("weight_gradient", ("dy", "x"))) for o in pair]
    roles += ["input_gradient.dy"]  # the weight is quantized once for both of its products
    bad = {(layer, of(*role)) for layer, role in not_fp8.items()}
    return {(layer, role): BF16 if (layer, role) in bad else FP8 for layer in SHAPES for role in roles}


def test_every_denominator_counts_what_it_says() -> None:
    found = shares(uses(events(a=("weight_gradient", "dy")), SHAPES, tokens=3))
    assert found["uses"] == pytest.approx(11 / 12)
    assert found["uses of dy"] == pytest.approx(3 / 4)
    assert found["uses in weight gradient"] == pytest.approx(3 / 4)
    assert found["uses in forward"] == found["uses of w"] == 1
    assert found["tensors"] == pytest.approx(5 / 6)
    assert found["products"] == pytest.approx(5 / 6)
    assert found["model"] == pytest.approx(5 / 9)
    assert found["elements"] == pytest.approx(1 - 3 * 4 / (2 * (2 * 6 + 2 * 8 + 2 * 12)))


def test_a_weight_counts_in_both_products_that_it_was_quantized_for_once() -> None:
    found = shares(uses(events(a=("forward", "w")), SHAPES, tokens=3))
    assert found["uses of w"] == pytest.approx(1 / 2)
    assert found["products"] == pytest.approx(4 / 6)


def counted(*by_threshold: dict) -> Counted:
    return Counted([{t: uses(each, SHAPES, 3) for t, each in zip(THRESHOLDS, by_threshold, strict=True)}])


NONE = dict.fromkeys(events(), BF16)


def test_claims_follow_the_counts_and_the_losses() -> None:
    courses = {TENSOR: course(2.0003, fp8_share=0.99), LADDER: course(2.01, fp8_share=0.3, nvfp4_share=0.6)}
    good = findings(branched(RECIPES, courses), looks(RECIPES), counted(NONE, NONE, events(), events(), events()))
    assert set(verdicts(good).values()) == {"reproduced"}
    assert "mor_nvfp4                30.00%  60.00%" in good.as_text()
    some = events(a=("weight_gradient", "dy"))
    courses = {TENSOR: course(2.02), LADDER: course(2.04)}
    bad = findings(branched(RECIPES, courses), looks(RECIPES), counted(some, some, events(), some, some))
    assert set(verdicts(bad).values()) == {"not reproduced"}


@pytest.mark.full
def test_the_study_counts_what_is_chosen(texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SCALES, "laptop", narrow_scale(texts))
    monkeypatch.setattr(mor, "RECIPES", {TENSOR: RECIPES[TENSOR]})
    found = study(Options(), tmp_path, Quiet())
    (one,) = found.data["shares"]
    assert one["0.01"]["uses"] == 0
    assert one["0.09"]["uses"] > 0.9
    assert one[str(CHOSEN)]["tensors"] <= one[str(CHOSEN)]["uses"] or one[str(CHOSEN)]["uses"] == 1
    (course_,) = [each for each in found.data["courses"] if each["name"] == TENSOR]
    assert 0 < course_["shares"]["fp8_share"] <= 1
