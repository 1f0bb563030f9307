"""Transcripts as files: text, JSON, SubRip (srt), WebVTT (vtt) and NIST's CTM.

Subtitles show cues of at most two lines of 42 letters and seven seconds, and begin a new one after a pause.
"""

import dataclasses
import json
import textwrap
from collections.abc import Callable, Iterator, Sequence
from typing import Literal, get_args

from seqloom.systems.deep_speech2.transcript import Transcript, Word, joined

Format = Literal["text", "json", "srt", "vtt", "ctm"]
FORMATS: tuple[Format, ...] = get_args(Format)

SUFFIX: dict[Format, str] = {"text": ".txt", "json": ".json", "srt": ".srt", "vtt": ".vtt", "ctm": ".ctm"}
LINE_LETTERS, LINES = 42, 2
CUE_SECONDS = 7.0
PAUSE_SECONDS = 0.8
SHORTEST_SECONDS = 0.7
"""A cue stays at least so long, unless the next one begins."""


def written(transcript: Transcript, form: Format) -> str:
    """A transcript in a format, ending in a line break."""
    writers: dict[Format, Callable[[Transcript], str]] = {
        "text": lambda one: one.text + "\n",
        "json": to_json,
        "srt": to_srt,
        "vtt": to_vtt,
        "ctm": to_ctm,
    }
    return writers[form](transcript)


def to_json(transcript: Transcript) -> str:
    """All that is known: text, segments with alternatives, words and characters."""
    facts = {"file": transcript.name, "text": transcript.text, **dataclasses.asdict(transcript)}
    del facts["name"]
    return json.dumps(facts, ensure_ascii=False) + "\n"


def to_srt(transcript: Transcript) -> str:
    """SubRip: numbered cues, times with a comma."""
    cues = enumerate(_cues(transcript.words), 1)
    return "\n".join(f"{n}\n{_time(start, ',')} --> {_time(end, ',')}\n{text}\n" for n, (start, end, text) in cues)


def to_vtt(transcript: Transcript) -> str:
    """WebVTT: times with a point, and the three letters that mean something there escaped."""
    parts = ["WEBVTT\n"]
    for start, end, text in _cues(transcript.words):
        plain = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
        parts.append(f"{_time(start, '.')} --> {_time(end, '.')}\n{plain}\n")
    return "\n".join(parts)


def to_ctm(transcript: Transcript) -> str:
    """One word a line: recording, channel, begin, duration, word, confidence."""
    name = "_".join(transcript.name.rpartition("/")[2].rpartition(".")[0].split()) or "recording"
    return "".join(
        f"{name} 1 {word.start:.3f} {word.end - word.start:.3f} {word.text} {word.confidence:.4f}\n"
        for word in transcript.words
    )


def _cues(words: Sequence[Word]) -> Iterator[tuple[float, float, str]]:
    groups: list[list[Word]] = []
    for word in words:
        if groups and _fits([*groups[-1], word]):
            groups[-1].append(word)
        else:
            groups.append([word])
    for place, group in enumerate(groups):
        following = groups[place + 1][0].start if place + 1 < len(groups) else float("inf")
        end = max(group[-1].end, min(group[0].start + SHORTEST_SECONDS, following))
        yield group[0].start, end, "\n".join(_lines(group))


def _fits(words: Sequence[Word]) -> bool:
    pause = words[-1].start - words[-2].end
    return pause < PAUSE_SECONDS and words[-1].end - words[0].start <= CUE_SECONDS and len(_lines(words)) <= LINES


def _lines(words: Sequence[Word]) -> list[str]:
    return textwrap.wrap(joined(words), LINE_LETTERS)


def _time(seconds: float, point: str) -> str:
    ms = round(seconds * 1000)
    return f"{ms // 3_600_000:02}:{ms // 60_000 % 60:02}:{ms // 1000 % 60:02}{point}{ms % 1000:03}"
