"""Transcripts in the formats that other programs read."""

import json
import re
from itertools import pairwise

from seqloom.systems.deep_speech2.subtitles import LINE_LETTERS, written
from seqloom.systems.deep_speech2.transcript import Alternative, Segment, Transcript, Word


def _transcript(words: list[tuple[str, float, float]], name: str = "talks/a talk.wav") -> Transcript:
    timed = tuple(Word(text, start, end, 0.5, ()) for text, start, end in words)
    text = " ".join(text for text, _, _ in words)
    return Transcript(name, 4000.0, (Segment(text, 0.0, 4000.0, 0.9, timed, (Alternative("no", 0.1),)),))


SHORT = _transcript([("go", 0.0, 0.25), ("<on>", 0.3, 0.5), ("then", 3661.5, 3662.75)])


def test_srt() -> None:
    assert written(SHORT, "srt") == (
        "1\n00:00:00,000 --> 00:00:00,700\ngo <on>\n\n2\n01:01:01,500 --> 01:01:02,750\nthen\n"
    )


def test_vtt() -> None:
    assert written(SHORT, "vtt") == (
        "WEBVTT\n\n00:00:00.000 --> 00:00:00.700\ngo &lt;on&gt;\n\n01:01:01.500 --> 01:01:02.750\nthen\n"
    )


def test_ctm_text_and_json() -> None:
    assert written(SHORT, "ctm").splitlines()[2] == "a_talk 1 3661.500 1.250 then 0.5000"
    assert written(SHORT, "text") == "go <on> then\n"
    data = json.loads(written(SHORT, "json"))
    assert data["file"] == "talks/a talk.wav"
    assert data["text"] == "go <on> then"
    assert data["segments"][0]["words"][0] == {
        "text": "go", "start": 0.0, "end": 0.25, "confidence": 0.5, "characters": [],
    }  # fmt: skip
    assert data["segments"][0]["alternatives"] == [{"text": "no", "confidence": 0.1}]


def test_cues_are_short_and_follow_each_other() -> None:
    long = _transcript([(f"word{n}", 0.4 * n, 0.4 * n + 0.3) for n in range(200)])
    cues = written(long, "srt").strip().split("\n\n")
    times = [re.findall(r"(\d+):(\d+):(\d+),(\d+)", cue.splitlines()[1]) for cue in cues]
    seconds = [[int(h) * 3600 + int(m) * 60 + int(s) + int(ms) / 1000 for h, m, s, ms in pair] for pair in times]
    assert all(len(cue.splitlines()) <= 4 for cue in cues)
    assert all(len(line) <= LINE_LETTERS for cue in cues for line in cue.splitlines()[2:])
    assert all(end - start <= 7.0 for start, end in seconds)
    assert all(before[1] <= after[0] for before, after in pairwise(seconds))
    assert " ".join(" ".join(cue.splitlines()[2:]) for cue in cues) == long.text


def test_nothing_said() -> None:
    empty = Transcript("x.wav", 1.0, ())
    assert [written(empty, form) for form in ("text", "srt", "vtt", "ctm")] == ["\n", "", "WEBVTT\n", ""]
