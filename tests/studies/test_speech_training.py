"""The studies of trained recognisers: what they plan, what they make of trainings, and one of them run."""

import json
from dataclasses import replace

import numpy as np
import pytest
from speech_trials import lost, recognisers, trial, verdicts

from seqloom.data.config import SourceConfig
from seqloom.studies import speech_bigrams, speech_conv, speech_norm, speech_row_conv, speech_sorta_grad
from seqloom.studies.speech_noise import NOISY_CER, with_babble
from seqloom.studies.speech_runs import Scale, SpeechOptions
from seqloom.systems.deep_speech2.budget import parameters
from seqloom.systems.deep_speech2.config import SpeechDataConfig
from seqloom.systems.deep_speech2.data import prepare
from seqloom.train.observer import Observer
from tiny_speech import narrow, write_corpus

ROOMS = (speech_bigrams, speech_conv, speech_norm, speech_row_conv, speech_sorta_grad)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("speech") / "a")


@pytest.mark.parametrize("room", ROOMS)
@pytest.mark.parametrize("scale", ["laptop", "gpu"])
def test_options_reach_every_run(room, scale):
    found = room.SCALES[scale].planned(SpeechOptions(scale=scale, data=("a", "b"), steps=50, seeds=2))
    assert found.seeds == 2
    for run in found.runs.values():
        assert [source.path for source in run.task.data.sources] == ["a", "b"]
        assert (run.train.steps, run.train.schedule.warmup_steps) == (50, 5)


def test_variants_differ_in_what_is_compared_alone():
    norm, order, units = (room.SCALES["laptop"].runs for room in (speech_norm, speech_sorta_grad, speech_bigrams))
    assert replace(norm["5"], model=norm["5_norm"].model) == norm["5_norm"]
    assert (norm["5"].model.norm, norm["5_norm"].model.norm) == ("none", "batch")
    assert [run.task.sorta_grad for run in order.values()] == [False, True, False, True]
    assert [run.model.time_stride for run in units.values()] == [2, 2, 4, 4]
    assert [run.task.data.units for run in units.values()] == ["characters", "bigrams"] * 2


def test_directions_are_compared_at_equal_size():
    for scale in speech_row_conv.SCALES.values():
        sizes = {variant: parameters(run.model) for variant, run in scale.runs.items()}
        assert sizes["forward"] == pytest.approx(sizes["both"], rel=0.01)
        assert sizes["forward_row"] == pytest.approx(sizes["both"], rel=0.01)
        assert scale.runs["forward_row"].model.row_context == 10


def test_normalization_must_gain_and_gain_more_with_depth():
    def said(one, one_norm, five, five_norm):
        values = {"1": one, "1_norm": one_norm, "5": five, "5_norm": five_norm}
        return verdicts(speech_norm, {name: [trial(0.1, loss=loss)] for name, loss in values.items()})

    assert said(10, 10.5, 8, 6) == {"deep": "reproduced", "more with depth": "reproduced"}
    assert said(10, 5, 8, 6) == {"deep": "reproduced", "more with depth": "not reproduced"}
    assert said(10, 10.5, 8, 8.1) == {"deep": "not reproduced", "more with depth": "reproduced"}
    assert set(verdicts(speech_norm, {"1": [trial(0.1)]}).values()) == {"not measured"}


def test_sorting_must_win_in_every_seed_and_lost_runs_are_counted():
    better = {"sorted": [trial(0.1), trial(0.2)], "shuffled": [trial(0.2), trial(0.2)]}
    assert list(verdicts(speech_sorta_grad, better).values()) == ["reproduced", "not measured", "not measured"]
    worse = {"sorted": [trial(0.1), trial(0.3)], "shuffled": [trial(0.2), lost()]}
    assert list(verdicts(speech_sorta_grad, worse).values()) == ["reproduced", "not measured", "reproduced"]
    swapped = {"sorted": [trial(0.3), lost()], "shuffled": [trial(0.2), trial(0.3)]}
    assert list(verdicts(speech_sorta_grad, swapped).values()) == ["not reproduced", "not measured", "not reproduced"]


def test_noise_must_gain_more_than_silence():
    def said(one, two):
        trials = {"1x1d": [trial(one[0], **{NOISY_CER: one[1]})], "2x2d": [trial(two[0], **{NOISY_CER: two[1]})]}
        return list(verdicts(speech_conv, trials).values())

    assert said((0.10, 0.40), (0.09, 0.20)) == ["reproduced", "reproduced"]
    assert said((0.10, 0.40), (0.02, 0.30)) == ["reproduced", "not reproduced"]
    assert said((0.0, 0.40), (0.0, 0.30)) == ["reproduced", "not measured"]  # no errors, so no share of them


def test_bigrams_are_judged_at_stride_4_and_what_was_left_out_is_told():
    trials = {
        "letters_2": [trial(0.10, seconds=1.0)], "bigrams_2": [trial(0.1)],
        "letters_4": [trial(0.20, utterances=40)], "bigrams_4": [trial(0.17, seconds=0.6)],
    }  # fmt: skip
    found = speech_bigrams.findings(recognisers(speech_bigrams, trials))
    assert [claim.verdict for claim in found.claims] == ["reproduced", "reproduced"]
    assert any("40, 48 utterances" in remark for remark in found.remarks)
    trials["bigrams_4"] = [trial(0.19, seconds=0.7)]
    assert list(verdicts(speech_bigrams, trials).values()) == ["not reproduced", "not reproduced"]


def test_a_row_convolution_is_judged_by_the_share_of_the_gap():
    def said(forward, row, both):
        return verdicts(
            speech_row_conv, {"forward": [trial(forward)], "forward_row": [trial(row)], "both": [trial(both)]}
        )

    assert said(0.20, 0.15, 0.10) == {"row convolution": "reproduced", "one direction": "reproduced"}
    assert said(0.20, 0.17, 0.10) == {"row convolution": "not reproduced", "one direction": "reproduced"}
    assert said(0.10, 0.09, 0.12) == {"row convolution": "not measured", "one direction": "reproduced"}


def test_babble_is_as_loud_as_it_says_and_always_the_same(corpus):
    config = SpeechDataConfig(sources=(SourceConfig(path=str(corpus)),))
    clean = prepare(config, lambda frames: frames, 29, 0).train
    noisy, again = with_babble(clean), with_babble(clean)
    for before, after, repeated in zip(clean, noisy, again, strict=True):
        speech, noise = before.samples(), after.samples() - before.samples()
        ratio = 20 * np.log10(float(speech.square().mean().sqrt() / noise.square().mean().sqrt()))
        assert 4.99 < ratio < 10.01
        assert (after.frames, after.ids) == (before.frames, before.ids)
        assert np.array_equal(after.audio, repeated.audio)


@pytest.mark.full
def test_a_study_trains_measures_in_noise_and_goes_on(corpus, tmp_path, monkeypatch):
    narrowed = {}
    for variant, run in speech_conv.SCALES["laptop"].runs.items():
        small = narrow(corpus)
        conv = tuple(replace(layer, channels=2) for layer in run.model.conv)
        model = replace(small.model, conv=conv, convolution=run.model.convolution)
        task = replace(run.task, batch_rows=4, evaluate_rows=4)
        narrowed[variant] = replace(run, model=model, task=task, train=replace(small.train, device="cpu", threads=1))
    monkeypatch.setitem(speech_conv.SCALES, "laptop", Scale(runs=narrowed, seeds=1))
    told = []

    class Listener(Observer):
        def on_message(self, text):
            told.append(text)

    options = speech_conv.Options(data=(str(corpus),), steps=8)
    found = speech_conv.study(options, tmp_path, Listener())
    assert [line.split(":")[0] for line in told] == ["1/2  1x1d, seed 0", "2/2  2x2d, seed 0"]
    assert all(NOISY_CER in run["valid"] for run in found.data["runs"])
    assert speech_conv.study(options, tmp_path, Listener()).as_data() == found.as_data()
    assert len(told) == 2
    assert "noisy CER here" in found.as_text()
    json.dumps(found.as_data())
