"""Lists of every form, splits by speaker, what is left out and why, minibatches, and noise."""

import json
import os
import stat

import numpy as np
import pytest
import torch

from seqloom.core.errors import ConfigError, DataError
from seqloom.data.config import SourceConfig
from seqloom.systems.deep_speech2.batches import Batches
from seqloom.systems.deep_speech2.config import AugmentConfig, SpeechDataConfig
from seqloom.systems.deep_speech2.data import prepare, report_lines
from seqloom.systems.deep_speech2.noise import Augmenter, change_speed, mix, pink
from seqloom.systems.deep_speech2.recordings import list_recordings
from seqloom.systems.deep_speech2.synth import speak_letters
from tiny_speech import write_corpus, write_wav

MESSAGES = {"no words", "characters outside the alphabet", "longer than the frames allow", "longer than max_seconds",
            "shorter than min_seconds", "silent", "unreadable"}  # fmt: skip


def load(path, output_length=lambda frames: frames // 2, vocab_size=29, **settings):
    config = SpeechDataConfig(sources=(SourceConfig(path=str(path)),), **settings)
    return prepare(config, output_length, vocab_size, seed=0)


def test_lists_of_every_form_name_the_same_recordings(tmp_path):
    folder = write_corpus(tmp_path / "a", 2, 2)
    table = [(one.name, one.text, one.speaker) for one in list_recordings(str(folder)).recordings]
    assert table[1] == ("01.wav", "NO", "speaker_1")
    lines = [{"audio_filepath": name, "text": text, "speaker": speaker} for name, text, speaker in table]
    (folder / "list.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    for path in (folder / "index.tsv", folder / "list.jsonl"):
        assert [(one.name, one.text, one.speaker) for one in list_recordings(str(path)).recordings] == table
    (folder / "index.tsv").unlink()
    assert len(list_recordings(str(folder)).recordings) == 4
    (folder / "list.jsonl").unlink()
    (folder / "1-2.trans.txt").write_text("1-2-0001 HELLO THERE\n", encoding="utf-8")
    (found,) = list_recordings(str(folder)).recordings
    assert (found.name, found.text, found.speaker) == ("1-2-0001.flac", "HELLO THERE", "1")


def test_the_split_called_train_is_taken_unless_another_is_named(tmp_path):
    rows = "file\ttext\tsplit\na.wav\tone\ttrain\nb.wav\ttwo\tdev\nc.wav\tthree\ttrain\n"
    (tmp_path / "index.tsv").write_text(rows)
    found = list_recordings(str(tmp_path))
    assert [one.text for one in found.recordings] == ["one", "three"]
    assert found.other_splits == {"dev": 1}
    assert [one.text for one in list_recordings(f"{tmp_path}#dev").recordings] == ["two"]
    with pytest.raises(DataError, match=r"no split 'test'; splits there: dev, train"):
        list_recordings(f"{tmp_path}#test")


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("index.tsv", "file\twords\n", "must name columns"),
        ("index.tsv", "file\ttext\na.wav\n", ":2: 1 columns"),
        ("a.jsonl", '{"audio": "a.wav"}\n', ':1: needs a "file"'),
        ("a.jsonl", "{\n", ":1: not JSON"),
        ("index.tsv", "file\ttext\n", "lists no recordings"),
    ],
)
def test_lists_that_cannot_be_read_say_where(tmp_path, name, content, reason):
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=reason):
        list_recordings(str(tmp_path))


def test_whole_speakers_are_held_back_and_sounds_come_from_the_cache(tmp_path):
    folder = write_corpus(tmp_path / "a")
    data = load(folder, valid_fraction=0.25)
    speakers = [{one.stored.speaker for one in part} for part in (data.train, data.valid)]
    assert [len(part) for part in speakers] == [3, 1]
    assert not speakers[0] & speakers[1]
    assert (len(data.train), len(data.valid)) == (18, 6)
    again = load(folder, valid_fraction=0.25)
    assert again.fingerprint == data.fingerprint
    assert torch.equal(again.train[3].samples(), data.train[3].samples())
    write_wav(folder / "00.wav", np.random.default_rng(9).normal(0, 0.1, 9000))
    assert load(folder, valid_fraction=0.25).fingerprint != data.fingerprint


def test_what_cannot_be_learned_is_counted_and_named(tmp_path):
    folder = write_corpus(tmp_path / "a")
    rows = (folder / "index.tsv").read_text().splitlines()
    for name, text, samples in [
        ("long.wav", "yes", np.random.default_rng(1).normal(0, 0.1, 3 * 16000)),
        ("short.wav", "yes", np.random.default_rng(1).normal(0, 0.1, 2000)),
        ("silent.wav", "yes", np.zeros(8000)),
        ("strange.wav", "naïve 你好", np.random.default_rng(1).normal(0, 0.1, 8000)),
        ("empty.wav", " ... ", np.random.default_rng(1).normal(0, 0.1, 8000)),
        ("dense.wav", "very " * 20, np.random.default_rng(1).normal(0, 0.1, 8000)),
    ]:
        write_wav(folder / name, samples)
        rows.append(f"{name}\t{text}\tspeaker_0")
    (folder / "text.wav").write_text("not a sound")
    rows += ["text.wav\tyes\tspeaker_0", "missing.wav\tyes\tspeaker_0"]
    (folder / "index.tsv").write_text("\n".join(rows), encoding="utf-8")
    report = load(folder, max_seconds=2.0).report
    (source,) = report["sources"]
    assert source["skipped"] == dict.fromkeys(MESSAGES, 1) | {"unreadable": 2}
    told = "\n".join(report_lines(report))
    for part in ("missing.wav: no such file", "dense.wav: longer than the frames allow: 99 labels in 24 steps", "'你'"):
        assert part in told
    with pytest.raises(DataError, match=r"2 recordings cannot be read \(task\.data\.bad_file_limit 1\)"):
        load(folder, max_seconds=2.0, bad_file_limit=1)


def test_missing_sources_and_weights_are_refused(tmp_path):
    with pytest.raises(DataError, match="--data FOLDER"):
        list_recordings("FILE")
    with pytest.raises(DataError, match="no index"):
        list_recordings(str(tmp_path))
    with pytest.raises(ConfigError, match="leave the weight out"):
        SpeechDataConfig(sources=(SourceConfig(path="a", weight=0.5),))


def test_the_synthesizer_gives_each_letter_its_own_sound_and_each_voice_its_own():
    yes = speak_letters("yes", 3)
    assert np.array_equal(yes, speak_letters("yes", 3))
    assert not np.array_equal(yes, speak_letters("yes", 4)[: len(yes)])
    assert 0.01 < float(np.std(yes)) < 0.5
    spectra = []
    for letter in "abcdefghijklmnopqrstuvwxyz":
        sound = speak_letters(letter, 0)
        middle = sound[len(sound) // 2 - 400 : len(sound) // 2 + 400]
        spectra.append(np.log(np.abs(np.fft.rfft(middle, 4096))[:1200].reshape(-1, 30).mean(1)))
    apart = np.linalg.norm(np.array(spectra)[:, None] - np.array(spectra), axis=-1) + 99 * np.eye(26)
    assert apart.min() > 1


def test_espeak_is_asked_for_every_sentence(tmp_path, monkeypatch):
    write_wav(tmp_path / "said.wav", np.random.default_rng(0).normal(0, 0.1, 8000), 22050)
    program = tmp_path / "espeak-ng"
    program.write_text(f"#!/bin/sh\ncat > {tmp_path}/heard\ncat {tmp_path}/said.wav\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    (tmp_path / "lines.txt").write_text("LJ-1\tGood morning.\n\nYes\n")
    with pytest.raises(DataError, match="not installed"):
        list_recordings(f"synthetic:espeak:{tmp_path}/lines.txt")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    first, second = list_recordings(f"synthetic:espeak:{tmp_path}/lines.txt").recordings
    assert (first.text, second.text) == ("Good morning.", "Yes")
    assert abs(len(first.read()) - round(8000 * 16000 / 22050)) <= 1
    assert (tmp_path / "heard").read_text() == "Good morning."


def test_sorta_grad_goes_by_length_first_and_later_epochs_are_shuffled_batches_of_like_length():
    frames = np.random.default_rng(0).integers(50, 500, 43).tolist()
    order = Batches(frames, 5, seed=1, sorta_grad=True)
    assert order.per_epoch == 8
    first = [order.at(step)[1] for step in range(8)]
    longest = [max(frames[index] for index in rows) for rows in first]
    assert longest == sorted(longest)
    later = [order.at(step) for step in range(8, 24)]
    assert [epoch for epoch, _ in later] == [1] * 8 + [2] * 8
    for epoch in (later[:8], later[8:]):
        used = [index for _, rows in epoch for index in rows]
        assert len(set(used)) == 40
        assert [max(frames[index] for index in rows) for _, rows in epoch] != longest
    spread = np.mean([np.ptp([frames[index] for index in rows]) for _, rows in later])
    assert spread < 0.5 * np.ptp(frames)
    assert Batches(frames, 5, seed=1, sorta_grad=True).at(13) == later[5]
    assert Batches(frames, 5, seed=1, sorta_grad=False).at(3)[1] != first[3]
    assert Batches(frames[:3], 5, seed=1, sorta_grad=True).at(7)[1] != []


def test_noise_has_the_ratio_that_was_drawn_and_comes_again(tmp_path):
    data = load(write_corpus(tmp_path / "a"))
    speech, noise = torch.randn(4000), torch.randn(4000) * 5
    added = mix(speech, noise, 10.0) - speech
    assert 10 * float((speech.square().mean() / added.square().mean()).log10()) == pytest.approx(10, abs=1e-3)
    config = AugmentConfig(noise_fraction=0.4, speed=0.1, gain_db=6.0, shift_ms=5.0)
    augment = Augmenter(config, 0, data.train)
    assert torch.equal(augment(3, 5, lambda samples: True), augment(3, 5, lambda samples: True))
    assert not torch.equal(augment(3, 5, lambda samples: True), augment(3, 6, lambda samples: True))
    only = Augmenter(AugmentConfig(noise_fraction=0.4), 0, data.train)
    clean = [torch.equal(only(0, epoch, bool), data.train[0].samples()) for epoch in range(200)]
    assert 0.3 < 1 - np.mean(clean) < 0.5
    still = Augmenter(AugmentConfig(noise_fraction=0.0, speed=0.3), 0, data.train)
    assert torch.equal(still(0, 1, lambda samples: False), data.train[0].samples())


def test_speed_moves_pitch_and_length_together():
    samples = torch.sin(2 * torch.pi * 500 * torch.arange(16000) / 16000)
    faster = change_speed(samples, 1.25)
    assert len(faster) == pytest.approx(12800, rel=0.02)
    peak = int(torch.fft.rfft(faster).abs().argmax()) * 16000 / len(faster)
    assert peak == pytest.approx(500 * 16000 / len(faster), abs=3)


def test_pink_noise_has_equal_power_in_every_octave():
    power = torch.fft.rfft(pink(1 << 16, torch.Generator().manual_seed(0))).abs().square()
    octaves = [float(power[1 << k : 2 << k].sum()) for k in range(8, 14)]
    assert max(octaves) / min(octaves) < 1.3
