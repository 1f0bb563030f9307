"""The filter of transcripts: its classifier, its spoiled examples, its features, and a use of it."""

import json

import numpy as np
import pytest
from scipy.optimize import minimize

from seqloom.core.errors import ConfigError, DataError
from seqloom.data.config import SourceConfig
from seqloom.systems.deep_speech2 import data_filter
from seqloom.systems.deep_speech2.alphabet import ENGLISH, Alphabet
from seqloom.systems.deep_speech2.data import least_steps, prepare
from seqloom.systems.deep_speech2.data_filter import (
    FEATURES,
    features_of,
    filter_transcripts,
    learn,
    measure,
    spoil,
    write_kept,
)
from seqloom.systems.deep_speech2.evaluate import Heard
from seqloom.train.loop import train
from tiny_speech import narrow, write_corpus

ALPHABET = Alphabet(ENGLISH)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("speech") / "a", each=12)


@pytest.fixture(scope="module")
def utterances(corpus):
    run = narrow(corpus)
    return prepare(run.task.data, run.model.output_length, 29, 0, alphabet=ALPHABET).train


def test_the_classifier_has_the_weights_of_the_highest_likelihood():
    draw = np.random.default_rng(0)
    x = draw.normal(3, 5, (60, 3))
    wrong = (x @ (0.4, -0.2, 0.0) + draw.normal(0, 2, 60)) > 1
    found = learn(x, wrong, decay=0.7)
    z = np.concatenate(((x - x.mean(0)) / x.std(0), np.ones((60, 1))), 1)

    def cost(weights):
        return np.logaddexp(0, np.where(wrong, -1, 1) * (z @ weights)).sum() + 0.35 * (weights[:-1] ** 2).sum()

    best = minimize(cost, np.zeros(4), tol=1e-12)
    assert found.weights == pytest.approx(best.x, abs=1e-4)
    assert found(x) == pytest.approx(1 / (1 + np.exp(-z @ best.x)), abs=1e-4)


def test_what_can_be_told_apart_exactly_still_has_finite_weights():
    x = np.concatenate((np.zeros((10, 6)), np.full((10, 6), 1000.0)))
    found = learn(x, np.arange(20) >= 10)
    assert np.isfinite(found.weights).all()
    quality = measure(found, x, np.arange(20) >= 10)
    assert (quality.precision, quality.recall, quality.kept_wrong) == (1.0, 1.0, 0.0)
    quality = measure(found, x, np.arange(20) >= 15)
    assert (quality.precision, quality.recall, quality.spoiled) == (0.5, 1.0, 5)


def test_so_many_are_spoiled_and_can_still_be_aligned(utterances):
    def fits(one):
        return least_steps(one.ids) <= one.frames // 2

    spoken, spoiled = spoil(utterances, 0.25, ALPHABET, fits, seed=3)
    assert spoiled.sum() == round(0.25 * len(utterances))
    for before, after, changed in zip(utterances, spoken, spoiled, strict=True):
        assert (before.text != after.text) == changed
        assert after.ids == ALPHABET.encode(after.text)
        assert fits(after)
        assert after.stored == before.stored
    again, _ = spoil(utterances, 0.25, ALPHABET, fits, seed=3)
    assert [one.text for one in again] == [one.text for one in spoken]


def test_features_are_those_of_the_paper(utterances):
    one = utterances[0]._replace(text="go on")
    (row,) = features_of([Heard(one, 12.0, "")])
    assert len(row) == len(FEATURES)
    assert row == pytest.approx([12.0, 12.0 / one.frames, 2.4, one.frames / 5, 2, 5])


@pytest.mark.full
def test_doubtful_transcripts_come_first_and_the_rest_can_be_trained_on(corpus, tmp_path, monkeypatch):
    """With a hearing that finds wrong words expensive, as a trained model does."""
    train(narrow(corpus), tmp_path / "model")
    source = SourceConfig(path=str(corpus))
    listing = {
        row.split("\t")[0]: row.split("\t")[1].lower() for row in (corpus / "index.tsv").read_text().split("\n")[1:-1]
    }
    bad = set(sorted(listing)[:5])  # in the archive itself

    def listen(model, spoken, alphabet, progress=None):
        for one in reversed(spoken):
            right = one.text == listing[one.stored.name] and one.stored.name not in bad
            yield Heard(one, (1.0 if right else 9.0) * len(one.text), "")

    monkeypatch.setattr(data_filter, "listen", listen)
    found = filter_transcripts(tmp_path / "model", (source,), 0.3)
    assert {one.name for one in found.judged[:5]} == bad
    assert found.quality.recall == 1.0
    assert found.weights["cost / characters"] > 0
    kept = found.kept()
    assert kept == set(listing) - bad
    assert write_kept(tmp_path / "kept.jsonl", (source,), kept) == len(kept)
    rows = [json.loads(line) for line in (tmp_path / "kept.jsonl").read_text(encoding="utf-8").splitlines()]
    assert {"audio", "text", "speaker"} == rows[0].keys()
    with pytest.raises(ConfigError, match="corrupt_fraction: 1"):
        filter_transcripts(tmp_path / "model", (source,), 1.0)
    with pytest.raises(DataError, match="lie in no files"):
        write_kept(tmp_path / "kept.jsonl", (SourceConfig(path="synthetic:letters"),), {"voice_00-00"})
