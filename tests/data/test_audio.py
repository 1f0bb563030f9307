"""Recordings of every kind become the same mono samples; damaged ones are refused by name."""

import io
import wave

import numpy as np
import pytest
import soundfile

from seqloom.core.errors import ConfigError, DataError
from seqloom.data import audio
from seqloom.data.audio import Polyphase, probe_audio, read_audio, stream_audio


def tone(rate, seconds=0.5, frequency=440.0, level=0.5):
    return (level * np.sin(2 * np.pi * frequency * np.arange(round(rate * seconds)) / rate)).astype(np.float32)


def write_pcm(path, samples, rate, width, channels=1):
    scaled = np.round(samples.astype(np.float64) * (2 ** (8 * width - 1) - 1)).astype(np.int64)
    data = b"".join(int(value).to_bytes(width, "little", signed=True) for value in scaled) if width > 1 else bytes(
        int(value) + 128 for value in scaled
    )  # fmt: skip
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(width)
        file.setframerate(rate)
        file.writeframes(data)
    return path


@pytest.mark.parametrize("width", [1, 2, 3, 4])
def test_pcm_of_every_width_is_what_soundfile_reads(tmp_path, width):
    path = write_pcm(tmp_path / "a.wav", tone(16000, 0.05), 16000, width)
    theirs, _ = soundfile.read(path, dtype="float32")
    np.testing.assert_allclose(read_audio(path), theirs, atol=1e-7)


@pytest.mark.parametrize(("kind", "subtype"), [("flac", "PCM_16"), ("ogg", "VORBIS"), ("wav", "FLOAT")])
def test_other_kinds_are_known_by_content_not_by_name(tmp_path, kind, subtype):
    path = tmp_path / "recording"
    soundfile.write(path, tone(16000), 16000, format=kind.upper(), subtype=subtype)
    found = read_audio(path)
    assert len(found) == 8000
    np.testing.assert_allclose(found, tone(16000), atol=0.02)


def test_channels_are_averaged(tmp_path):
    left, right = tone(16000, 0.02), tone(16000, 0.02, 1000.0)
    path = write_pcm(tmp_path / "a.wav", np.stack([left, right], 1).ravel(), 16000, 2, channels=2)
    np.testing.assert_allclose(read_audio(path), (left + right) / 2, atol=1e-4)


@pytest.mark.parametrize("rate", [8000, 11025, 22050, 44100, 48000])
@pytest.mark.parametrize("own", [True, False])
def test_any_rate_keeps_a_tone_and_removes_what_would_alias(tmp_path, monkeypatch, rate, own):
    if own:
        monkeypatch.setitem(__import__("sys").modules, "soxr", None)
    samples = tone(rate) + (tone(rate, frequency=9500.0) if rate > 22000 else 0)
    path = write_pcm(tmp_path / "a.wav", samples * 0.5, rate, 2)
    found, expected = read_audio(path), 0.5 * tone(16000)
    assert abs(len(found) - 8000) <= 1
    np.testing.assert_allclose(found[800:7200], expected[800:7200], atol=2e-3)


def test_own_resampler_gives_the_same_in_one_piece_or_in_many():
    samples = np.random.default_rng(0).normal(size=3000).astype(np.float32)
    whole = Polyphase(22050, 16000)(samples, True)
    change = Polyphase(22050, 16000)
    cut = [change(part, False) for part in np.split(samples, [1, 7, 500, 501, 2000])]
    np.testing.assert_array_equal(np.concatenate([*cut, change(samples[:0], True)]), whole)


def test_blocks_are_bounded_and_where_they_are_cut_changes_nothing(tmp_path):
    path = write_pcm(tmp_path / "a.wav", tone(44100, 2.0), 44100, 2)
    blocks = list(stream_audio(path, block_seconds=0.1))
    assert max(map(len, blocks)) < 4000
    np.testing.assert_allclose(np.concatenate(blocks), read_audio(path), atol=1e-6)


def test_what_is_no_recording_is_refused_with_its_reason(tmp_path):
    whole = write_pcm(tmp_path / "whole.wav", tone(16000), 16000, 2).read_bytes()
    silent = write_pcm(tmp_path / "silent.wav", np.full(8000, 0.25, np.float32), 16000, 2).read_bytes()
    empty = write_pcm(tmp_path / "empty.wav", np.zeros(0, np.float32), 16000, 2).read_bytes()
    flac = io.BytesIO()
    soundfile.write(flac, np.random.default_rng(0).normal(0, 0.1, 16000), 16000, format="FLAC")
    for data, reason in [
        (b"", "no bytes"),
        (b"hello, this is text and no sound at all", "not a recording"),
        (whole[:5000], "cut short; its header promises 8,000 samples, 2,478 are there"),
        (flac.getvalue()[:9000], "cut short"),
        (silent, "silent"),
        (empty, "no samples"),
    ]:
        path = tmp_path / "bad.wav"
        path.write_bytes(data)
        with pytest.raises(DataError, match=rf"bad\.wav: .*{reason}"):
            read_audio(path)
    with pytest.raises(DataError, match=r"missing\.wav: cannot be read"):
        probe_audio(tmp_path / "missing.wav")


def test_a_wav_from_a_pipe_has_no_known_length_and_is_read_to_its_end(tmp_path):
    data = bytearray(write_pcm(tmp_path / "a.wav", tone(16000), 16000, 2).read_bytes())
    data[40:44] = b"\xff\xff\xff\xff"
    assert probe_audio(io.BytesIO(bytes(data))).samples is None
    assert len(read_audio(io.BytesIO(bytes(data)))) == 8000


def test_wav_needs_nothing_installed_and_flac_names_what_it_needs(tmp_path, monkeypatch):
    modules = __import__("sys").modules
    soundfile.write(tmp_path / "a.flac", tone(16000), 16000)
    for name in ("soundfile", "soxr"):
        monkeypatch.setitem(modules, name, None)
    assert len(read_audio(write_pcm(tmp_path / "a.wav", tone(8000), 8000, 2))) == 8000
    with pytest.raises(ConfigError, match=r"seqloom\[speech\]"):
        read_audio(tmp_path / "a.flac")


def test_the_first_block_of_a_long_recording_comes_without_the_rest(tmp_path):
    path = tmp_path / "long.wav"
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16000)
        file.setnframes(0)
        block = (tone(16000, 60.0) * 32767).astype("<i2").tobytes()
        for _ in range(3):
            file.writeframes(block)
    first = next(stream_audio(path))
    assert len(first) == audio.BLOCK_SECONDS * audio.RATE
