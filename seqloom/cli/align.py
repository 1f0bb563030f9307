"""`seqloom align`: when each word of a transcript was said, and clips of single utterances."""

import sys
from pathlib import Path

import tyro

from seqloom.cli.arguments import parse
from seqloom.cli.transcribe import read_format
from seqloom.core.errors import ConfigError, DataError


def main(arguments: list[str]) -> None:
    parse("align", align, arguments)


def align(
    audio: tyro.conf.Positional[Path],
    text: tyro.conf.Positional[Path],
    *,
    run: Path,
    format: str = "ctm",
    clips: Path | None = None,
) -> None:
    """Find when each word of a known text is said in a recording.

    Example: seqloom align chapter.flac chapter.txt --run runs/an4 --format srt

    Example: seqloom align chapter.flac chapter.txt --run runs/an4 --clips data/chapter

    Args:
        audio: a recording of any length.
        text: a file with its words.
        run: a run or model folder of deep_speech2; one that hears both directions is more exact.
        format: ctm, json, srt, vtt or text.
        clips: a new folder for short clips, cut at long pauses, and an index.tsv to train on.
    """
    form = read_format(format)
    if clips is not None and clips.exists():
        raise ConfigError(f"--clips {clips}: exists already; name a new folder")
    try:
        said = text.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{text}: cannot be read as text: {error}") from error
    from seqloom.data.audio import probe_audio
    from seqloom.systems.deep_speech2.clips import write_clips
    from seqloom.systems.deep_speech2.subtitles import written
    from seqloom.systems.deep_speech2.transcribe import Recogniser
    from seqloom.systems.deep_speech2.transcript import Segment, Transcript

    words = Recogniser(run).align(audio, said)
    seconds = round(probe_audio(audio).seconds or words[-1].end, 3)
    spaced = any(len(word.text) > 1 for word in words)
    confidence = round(sum(word.confidence for word in words) / len(words), 4)
    line = (" " if spaced else "").join(word.text for word in words)
    whole = Transcript(
        str(audio), round(seconds, 3), (Segment(line, 0.0, round(seconds, 3), confidence, tuple(words)),)
    )
    print(written(whole, form), end="")
    if clips is not None:
        print(f"{clips}: {write_clips(audio, words, seconds, clips)} clips", file=sys.stderr)
