import json
from pathlib import Path

import pytest

from seqloom.core.errors import ConfigError
from seqloom.studies import speech_decoding, speech_filter
from seqloom.studies.speech_decoding import findings
from seqloom.studies.speech_model import ModelOptions, planned, trained
from seqloom.studies.speech_pruning import pruning
from seqloom.systems.deep_speech2.data_filter import FEATURES, Filtered, Judged, Quality
from seqloom.train.loop import train
from seqloom.train.observer import Observer
from tiny_speech import narrow, write_corpus


def rates(wer, wer_lm, words=100.0):
    return {"words": words, "utterances": 40.0, "wer": wer, "wer_lm": wer_lm, "cer": 0.1, "cer_lm": 0.1, "alpha": 1.0,
            "beta": 1.0}  # fmt: skip


def cost(cer, lookups):
    return {"cer": cer, "lookups": lookups, "seconds": 1.0}


def said(regular, noisy, pruned):
    return [claim.verdict for claim in findings({"regular": regular, "noisy": noisy}, pruned, {}).claims]


def test_the_claims_are_those_of_the_paper():
    good = {"full": cost(0.1, 1000), "pruned": cost(0.1002, 20)}
    assert said(rates(0.3, 0.2), rates(0.3, 0.29), good) == [
        "reproduced", "not reproduced", "reproduced", "reproduced",
    ]  # fmt: skip
    bad = {"full": cost(0.1, 1000), "pruned": cost(0.101, 21)}
    assert said(rates(0.05, 0.0), rates(0.3, 0.1), bad) == [
        "not measured", "reproduced", "not reproduced", "not reproduced",
    ]  # fmt: skip
    assert said(rates(0.3, 0.2), rates(0.3, 0.2), None)[2:] == ["not measured", "not measured"]


def test_pruning_asks_less_and_says_the_same():
    settings = {"characters": 300, "utterances": 4, "length": 6, "beam": 8, "training_characters": 5000}
    found = pruning(settings, lambda what, share: None)
    if found is None:
        pytest.skip("no native decoder")
    assert found["full"]["lookups"] > found["pruned"]["lookups"] > 0
    assert found["pruned"]["cer"] == pytest.approx(found["full"]["cer"], abs=0.05)
    assert found["full"]["cer"] < 0.5


def test_the_filter_is_judged_by_precision_at_recall():
    def verdicts(precision, recall, kept_wrong):
        quality = Quality(precision=precision, recall=recall, kept_wrong=kept_wrong, spoiled=20, utterances=100)
        judged = (Judged("a", "yes", 0.9), Judged("b", "no", 0.1))
        found = Filtered(judged=judged, quality=quality, weights=dict.fromkeys(FEATURES, 0.5))
        report = speech_filter.findings(found, speech_filter.Options(), {})
        json.dumps(report.as_data())
        return [claim.verdict for claim in report.claims]

    assert verdicts(0.95, 0.9, 0.02) == ["reproduced", "reproduced"]
    assert verdicts(0.95, 0.4, 0.13) == ["not reproduced", "not reproduced"]


def test_a_named_model_must_be_a_run(tmp_path):
    with pytest.raises(ConfigError, match=r"--model: .* no run folder"):
        trained(ModelOptions(model=str(tmp_path)), tmp_path, Observer())
    assert planned(ModelOptions(data=("a",), steps=8)).train.evaluate_every == 8


@pytest.mark.full
def test_both_studies_of_a_trained_model_run(tmp_path, monkeypatch):
    """On noise with words that nobody hears; with pruning left to its own test."""
    corpus = write_corpus(tmp_path / "speech", each=14)
    run = narrow(corpus)
    run = type(run)(**{**vars(run), "task": type(run.task)(**{**vars(run.task), "data": _half_back(run.task.data)})})
    train(run, tmp_path / "model")
    monkeypatch.setattr(speech_decoding, "pruning", lambda settings, progress: None)
    options = speech_decoding.Options(model=str(tmp_path / "model"))
    found = speech_decoding.study(options, tmp_path / "study", Observer())
    assert set(found.data["rates"]) == {"regular", "noisy"}
    assert found.claims[-1].verdict == "not measured"
    assert Path(tmp_path / "study" / "pruning.json").exists()
    filtered = speech_filter.study(speech_filter.Options(model=str(tmp_path / "model")), tmp_path / "study", Observer())
    assert filtered.data["quality"]["utterances"] == 14


def _half_back(data):
    return type(data)(**{**vars(data), "valid_fraction": 0.45})
