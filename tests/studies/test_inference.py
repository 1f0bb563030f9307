"""The study of what a hybrid saves while it serves, on models of some thousand parameters and on given measurements."""

from dataclasses import replace
from pathlib import Path

import pytest

from seqloom.core.errors import ConfigError
from seqloom.studies import inference
from seqloom.studies.cache_budget import Served, row_bytes, rows_that_fit
from seqloom.studies.decoding import Point
from seqloom.studies.inference import Options, findings, study
from seqloom.studies.inference_tables import HYBRID, MODELS, READING, TRANSFORMER, WRITING, Measured
from seqloom.studies.twins import attention_twin
from seqloom.train.observer import Observer
from study_trials import NARROW


class Quiet(Observer):
    def on_message(self, text: str) -> None:
        pass


def given(gains: dict[int, float], predicted: float, throughput: dict[str, float], off: int = 0) -> Measured:
    """Measurements of a hybrid that takes a millisecond and writes 100 tokens a second."""
    points = [
        Point(
            model=model,
            context=context,
            seconds=1e-3 * (gain if model == TRANSFORMER else 1),
            state_bytes=100 + off,
            predicted_state_bytes=100,
            step_bytes=round(1000 * (predicted if model == TRANSFORMER else 1)),
        )
        for context, gain in gains.items()
        for model in MODELS
    ]
    served = [
        Served(model=model, load=load, rows=4, tokens_per_second=100 / (gain if model == TRANSFORMER else 1), seconds=1)
        for load, gain in throughput.items()
        for model in MODELS
    ]
    return Measured(points=points, served=served, machine="a machine", crossover=7)


def test_claims_follow_from_what_was_measured() -> None:
    def verdicts(found: Measured) -> dict[str, str]:
        return {claim.name: claim.verdict for claim in findings(Options(), found).claims}

    rising = {1024: 1.2, 16384: 2.5, 65536: 4.4}
    assert set(verdicts(given(rising, 5.0, {WRITING: 3.5, READING: 1.5})).values()) == {"reproduced"}
    falling = given({1024: 4.0, 65536: 3.5}, 9.0, {WRITING: 2.0, READING: 2.5}, off=1)
    assert set(verdicts(falling).values()) == {"not reproduced"}
    short = given({1024: 1.2}, 1.2, {WRITING: 3.5, READING: 1.5})
    assert verdicts(short)["speed"] == "not measured"


def test_rows_of_a_budget_follow_the_formula() -> None:
    pure = attention_twin(NARROW)
    per_token = pure.pattern.count("*") * 2 * 16 * 4  # of one key-value head, keys and values of 16 in FP32
    assert row_bytes(pure, 100) == 100 * per_token
    assert rows_that_fit(pure, 100, 1000 * per_token, 64) == 10
    assert rows_that_fit(pure, 100, 1000 * per_token, 6) == 6
    assert row_bytes(NARROW, 0) == 2 * (4 * 16 * 8 * 4 + 3 * (64 + 2 * 2 * 8) * 4)


@pytest.mark.full
def test_the_study_times_serves_and_reads_its_measurements_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inference, "MODELS", {HYBRID: NARROW, TRANSFORMER: attention_twin(NARROW)})
    options = Options(contexts=(64, 16), prompt=26, requests=3, budget_mib=0.04)
    found = study(options, tmp_path, Quiet())
    assert [row[0] for row in found.tables[0].rows] == ["16", "64"]
    served = {(each["model"], each["load"]): each for each in found.data["served"]}
    assert served[TRANSFORMER, WRITING]["rows"] == 1 < served[HYBRID, WRITING]["rows"]
    assert next(claim for claim in found.claims if claim.name == "memory").verdict == "reproduced"
    assert "75 in, 3 out" in found.as_text()
    monkeypatch.setattr(inference, "serve", None)
    assert study(options, tmp_path, Quiet()).data == found.data
    with pytest.raises(ConfigError, match="holds not one sequence of 78 tokens"):
        study(replace(options, budget_mib=0.01), tmp_path, Quiet())
