"""What a user names as speech, as a list of recordings with their words; nothing is read yet but lists.

    a folder        with an index.tsv, else with JSON lines, else with LibriSpeech's *.trans.txt anywhere below
    index.tsv       a table with a head: columns "file" and "text", and, where known, "speaker" and "split"
    *.jsonl         objects with "audio" (or NeMo's "audio_filepath") and "text", and perhaps "speaker" and "split"
    synthetic:...   speech made here; see `synth.py`

Files are relative to the list that names them. "#NAME" at the end of a path takes the rows whose split has that name.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from seqloom.core.errors import DataError
from seqloom.data.audio import Samples, read_audio
from seqloom.data.config import YOUR_DATA

INDEX, TRANSCRIPTS = "index.tsv", "*.trans.txt"
TRAIN = "train"
"""The split that is taken where a list has splits and none is named."""
SOUNDS = {".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aiff", ".aif", ".au"}
_FILE_KEYS, _SPEAKER_KEYS = ("file", "audio", "audio_filepath"), ("speaker", "speaker_id", "spk")


class Recording(NamedTuple):
    """One utterance before it is read.

    Attributes:
        name: what to call it in a message.
        text: as it is written in the list.
        speaker: None where nobody says.
        read: gives its samples.
        file: where it lies; None if it is made here.
    """

    name: str
    text: str
    speaker: str | None
    read: Callable[[], Samples]
    file: Path | None = None


class Listing(NamedTuple):
    """All recordings of a source.

    Attributes:
        key: plain data that changes whenever they may have changed.
        other_splits: rows that were not taken: name of their split -> how many.
    """

    recordings: list[Recording]
    key: Any
    other_splits: dict[str, int]


def list_recordings(source: str) -> Listing:
    """
    Args:
        source: as in `SourceConfig.path`.
    Raises:
        DataError: there is no such thing, or it lists nothing.
    """
    if source.startswith("synthetic:"):
        from seqloom.systems.deep_speech2.synth import synthetic

        return synthetic(source)
    name, _, split = source.partition("#")
    path = Path(name).expanduser()
    if name == YOUR_DATA and not path.exists():
        raise DataError("this recipe trains on recordings of your own, so name them: --data FOLDER")
    if not path.exists():
        raise DataError(f"{path}: no such file or folder; also known: synthetic:letters, synthetic:espeak:TEXT_FILE")
    try:
        rows = [(Row(fields, where), home) for fields, where, home in _rows(path)]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from error
    splits = Counter(row.split for row, _ in rows)
    wanted = split or (TRAIN if splits[TRAIN] else None)
    if split and not splits[split]:
        known = ", ".join(sorted(filter(None, splits))) or "none"
        raise DataError(f"{path}: has no split {split!r}; splits there: {known}")
    found = [row.recording(home) for row, home in rows if wanted in (None, row.split)]
    if not found:
        raise DataError(f"{path}: lists no recordings")
    others = {str(key): count for key, count in splits.items() if wanted not in (None, key)}
    return Listing(found, [_key(recording) for recording in found], others)


def list_sounds(folder: Path) -> Listing:
    """Every sound file below a folder, without words: noise.

    Raises:
        DataError: there is none.
    """
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SOUNDS) if folder.is_dir() else []
    if not files:
        raise DataError(f"task.augment.noise: {folder} is no folder with recordings ({', '.join(sorted(SOUNDS))})")
    found = [_from_file(str(path.relative_to(folder)), "", None, path) for path in files]
    return Listing(found, [_key(recording) for recording in found], {})


class Row(NamedTuple):
    """One row of a list."""

    fields: dict[str, Any]
    where: str

    @property
    def split(self) -> str | None:
        return self.fields.get("split") or None

    def recording(self, home: Path) -> Recording:
        """
        Raises:
            DataError: it names no file, or no text.
        """
        file = next((self.fields[key] for key in _FILE_KEYS if self.fields.get(key)), None)
        text = self.fields.get("text")
        if not isinstance(file, str) or not isinstance(text, str):
            named = ", ".join(sorted(map(str, self.fields))[:10]) or "nothing"
            raise DataError(f'{self.where}: needs a "file" (or "audio", "audio_filepath") and a "text"; it has {named}')
        speaker = next((self.fields[key] for key in _SPEAKER_KEYS if self.fields.get(key)), None)
        return _from_file(file, text, None if speaker is None else str(speaker), home / file)


def _from_file(name: str, text: str, speaker: str | None, path: Path) -> Recording:
    return Recording(name, text, speaker, lambda: read_audio(path), path)


def _key(recording: Recording) -> list[Any]:
    assert recording.file is not None
    try:
        facts = recording.file.stat()
        seen: list[Any] = [facts.st_size, facts.st_mtime_ns]
    except OSError:
        seen = []  # named as missing when it is read
    return [str(recording.file.absolute()), recording.text, recording.speaker, *seen]


def _rows(path: Path) -> Iterator[tuple[dict[str, Any], str, Path]]:
    """Fields, place, and the folder that files are relative to."""
    if not path.is_dir():
        reader = _json_lines if path.suffix in (".jsonl", ".json", ".ndjson") else _table
        yield from ((fields, where, path.parent) for fields, where in reader(path))
        return
    if (path / INDEX).exists():
        yield from _rows(path / INDEX)
    elif lists := sorted(path.glob("*.jsonl")):
        for file in lists:
            yield from _rows(file)
    elif lists := sorted(path.rglob(TRANSCRIPTS)):
        for file in lists:
            yield from ((fields, where, file.parent) for fields, where in _transcripts(file))
    else:
        raise DataError(f"{path}: has no {INDEX}, no JSON lines and no {TRANSCRIPTS} that say what is spoken")


def _table(path: Path) -> Iterator[tuple[dict[str, Any], str]]:
    lines = path.read_text(encoding="utf-8-sig").splitlines()
    names = lines[0].split("\t") if lines else []
    if "text" not in names or not set(_FILE_KEYS) & set(names):
        raise DataError(f'{path}: the first line must name columns, "file" and "text" among them, between tabs')
    for number, line in enumerate(lines[1:], start=2):
        values = line.split("\t")
        if line and len(values) != len(names):
            raise DataError(f"{path}:{number}: {len(values)} columns, the first line names {len(names)}")
        if line:
            yield dict(zip(names, values, strict=True)), f"{path}:{number}"


def _json_lines(path: Path) -> Iterator[tuple[dict[str, Any], str]]:
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            fields = json.loads(line)
        except ValueError as error:
            raise DataError(f"{path}:{number}: not JSON: {error}") from error
        if not isinstance(fields, dict):
            raise DataError(f"{path}:{number}: expected an object, found {type(fields).__name__}")
        yield fields, f"{path}:{number}"


def _transcripts(path: Path) -> Iterator[tuple[dict[str, Any], str]]:
    """LibriSpeech: an identifier SPEAKER-CHAPTER-NUMBER and the words, one utterance a line."""
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        name, _, text = line.partition(" ")
        yield {"file": f"{name}.flac", "text": text, "speaker": name.split("-")[0]}, f"{path}:{number}"
