import pytest

from seqloom.studies import hybrid
from seqloom.studies.decoding import Point
from seqloom.studies.hybrid import Measured, Options, findings, study
from seqloom.train.observer import Observer
from study_trials import paired, trial

CONTEXTS = (1024, 65536)


def points(gains: tuple[float, float], off: int = 0) -> list[Point]:
    """Times at which the Transformer takes so many times as long as the hybrid."""
    found = []
    for context, gain in zip(CONTEXTS, gains, strict=True):
        for model, seconds in (("hybrid", 0.01), ("transformer", 0.01 * gain), ("mamba", 0.01)):
            moved = 1000 * (2 if model == "transformer" else 1)
            found.append(
                Point(
                    model=model, context=context, seconds=seconds, state_bytes=100 + off, predicted_state_bytes=100,
                    step_bytes=moved,
                )
            )  # fmt: skip
    return found


def verdicts(found: Measured) -> dict[str, str]:
    return {claim.name: claim.verdict for claim in findings(found).claims}


def test_claims_hold_where_the_data_is_like_the_paper() -> None:
    trained = paired(
        hybrid,
        hybrid=[trial(2.0, recall=0.5), trial(2.1, recall=0.5)],
        transformer=[trial(2.0, recall=0.6), trial(2.102, recall=0.6)],
        mamba=[trial(2.05, recall=0.1), trial(2.15, recall=0.1)],
    )
    found = Measured(trained=trained, points=points((1.0, 3.0)), machine="a machine")
    assert verdicts(found) == dict.fromkeys(("quality", "recall", "speed", "memory"), "reproduced")
    text = findings(found).as_text()
    assert "+0.00% " not in text
    assert "65,536   10.00   30.00        10.00  3.00                     2.00" in text


def test_claims_fail_where_the_data_says_otherwise() -> None:
    trained = paired(
        hybrid,
        hybrid=[trial(2.1, recall=0.1)],
        transformer=[trial(2.0, recall=0.6)],
        mamba=[trial(2.05, recall=0.2)],
    )
    found = Measured(trained=trained, points=points((3.0, 2.5), off=4), machine="a machine")
    assert verdicts(found) == dict.fromkeys(("quality", "recall", "speed", "memory"), "not reproduced")
    assert any(remark.startswith("There is one seed") for remark in findings(found).remarks)


def test_what_was_not_trained_is_not_judged() -> None:
    found = Measured(trained=paired(hybrid, hybrid=[trial(2.1)]), points=points((1.0, 3.0)), machine="a machine")
    assert verdicts(found) == {
        "quality": "not measured", "recall": "not measured", "speed": "reproduced", "memory": "reproduced",
    }  # fmt: skip


@pytest.mark.usefixtures("narrow_twins")
def test_the_study_trains_probes_and_times_all_three(texts, tmp_path) -> None:
    class Quiet(Observer):
        def on_message(self, text: str) -> None:
            pass

    found = study(Options(data=(str(texts),), steps=4, seeds=1, contexts=(64, 16)), tmp_path, Quiet())
    found.write(tmp_path)
    assert {run["variant"] for run in found.data["runs"]} == {"hybrid", "transformer", "mamba"}
    assert all({"bits_per_byte", "recall_saved", "recall_accuracy"} < run["valid"].keys() for run in found.data["runs"])
    assert [point["context"] for point in found.data["decoding"]] == [16] * 3 + [64] * 3
    assert {claim.name: claim.verdict for claim in found.claims}["memory"] == "reproduced"
    assert "Transformer over hybrid" in (tmp_path / "findings.html").read_text(encoding="utf-8")
