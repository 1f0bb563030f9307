from pathlib import Path

import pytest

from seqloom.studies import fp8
from seqloom.studies.fp8 import E4M3, HYBRID, RECIPES, TENSOR, Options, findings, study
from seqloom.studies.precision_scales import SCALES
from study_courses import Quiet, branched, course, looks, narrow_scale, verdicts


def test_small_gaps_reproduce_and_large_ones_do_not() -> None:
    small = findings(branched(RECIPES, {name: course(2.004) for name in RECIPES}), looks(RECIPES))
    assert set(verdicts(small).values()) == {"reproduced"}
    assert "-0.200% (beyond twice the null spread of 0.010%)" in small.as_text()
    large = branched(RECIPES, {TENSOR: course(2.01), E4M3: course(2.0002), HYBRID: course(2.1, ended="step 6: NaN")})
    assert verdicts(findings(large, looks(RECIPES))) == {
        "C1 per tensor": "not reproduced",
        f"C2 {E4M3}": "reproduced",
        f"C2 {HYBRID}": "not measured",
        "C2 steady": "not reproduced",
    }
    text = findings(large, looks(RECIPES)).as_text()
    assert "within twice the null spread" in text
    assert f"{HYBRID}, seed 0: step 6: NaN" in text


def test_seeds_give_an_interval() -> None:
    found = branched(RECIPES, {TENSOR: [course(2.002), course(2.006)]})
    assert "-0.200% ± 1.271%" in findings(found, looks(RECIPES)).as_text()


@pytest.mark.full
def test_the_study_branches_into_formats_and_looks_at_them(
    texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SCALES, "laptop", narrow_scale(texts))
    monkeypatch.setattr(fp8, "RECIPES", {E4M3: RECIPES[E4M3]})
    found = study(Options(), tmp_path, Quiet())
    found.write(tmp_path)
    assert {c["name"] for c in found.data["courses"]} == {"reference", "null 1", "null 2", E4M3}
    (looked,) = found.data["looks"]
    assert looked["reference"]["gradient_error"] == 0
    assert 0.001 < looked[E4M3]["gradient_error"] < 0.3
    assert looked[E4M3]["gradient_cosine"] > 0.95
    assert looked[E4M3]["loss"] != looked["reference"]["loss"]
    assert "Relative gap of the training loss" in (tmp_path / "findings.html").read_text(encoding="utf-8")
    monkeypatch.setattr("seqloom.train.loop.train", lambda *_: pytest.fail("trained again"))
    assert study(Options(), tmp_path, Quiet()).data == found.data
