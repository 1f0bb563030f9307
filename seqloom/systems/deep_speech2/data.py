"""Speech ready for training: recordings decoded once, split by speaker, spelled in an alphabet, counted.

Decoded audio (mono, 16 kHz, 16 bits under a scale of its own) is kept in the user's cache under a key of the files and
limits; features are computed from it as they are needed, since every epoch adds other noise. Held back are whole
speakers where they are known, else utterances by a digest of their words. What cannot be used is counted and named.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from seqloom.core.cache import cached, key
from seqloom.core.errors import DataError
from seqloom.core.progress import Progress
from seqloom.data.audio import RATE, probe_audio
from seqloom.data.config import SourceConfig
from seqloom.ops.ctc import frames_needed
from seqloom.systems.deep_speech2.alphabet import Alphabet, build_alphabet, english, listed
from seqloom.systems.deep_speech2.config import FeatureConfig, SpeechDataConfig
from seqloom.systems.deep_speech2.features import frame_count, mean_and_deviation, utterance_features
from seqloom.systems.deep_speech2.recordings import Listing, Recording, list_recordings, list_sounds

VERSION = 1
"""Of what is stored; a new one makes it anew."""
NAMED = 5
"""Examples that a report gives of what was left out."""
STATISTICS_UTTERANCES = 1000
"""Most utterances that the normalisation of features is learned from."""
_FULL = 32767


class Stored(NamedTuple):
    """A decoded recording in the cache: samples `start` to `start + samples`, times `scale`."""

    name: str
    text: str
    speaker: str | None
    start: int
    samples: int
    scale: float


class Corpus(NamedTuple):
    """The decoded recordings of one source, and what was left out of it: reason -> how many, and the first of them."""

    recordings: list[Stored]
    audio: Any
    skipped: dict[str, int]
    examples: list[str]
    digest: str


class Utterance(NamedTuple):
    """What is learned from or measured on: sounds, words, and the outputs that spell them."""

    stored: Stored
    audio: Any
    text: str
    ids: list[int]

    @property
    def frames(self) -> int:
        return frame_count(self.stored.samples)

    def samples(self) -> Float[Tensor, "N"]:
        """The recording, as FP32 of its own."""
        part = self.audio[self.stored.start : self.stored.start + self.stored.samples]
        return torch.from_numpy(part.astype(np.float32)) * self.stored.scale


class SpeechData(NamedTuple):
    """Prepared speech.

    Attributes:
        report: what a user wants to read before step 1, as plain data; `report_lines` puts it in words.
        fingerprint: digest of sounds, words and split.
    """

    train: list[Utterance]
    valid: list[Utterance]
    alphabet: Alphabet
    report: dict[str, Any]
    fingerprint: str


def open_corpus(source: str, listing: Listing, config: SpeechDataConfig, progress: Progress) -> Corpus:
    """The decoded recordings of a list, from the cache where they are there.

    Raises:
        DataError: more recordings than tolerated cannot be read, or none can.
    """
    limits = (config.min_seconds, config.max_seconds)
    name = key("speech", VERSION, _resampling(), limits, listing.key)

    def make(folder: Path) -> None:
        _store(folder, source, listing.recordings, config, progress)

    corpus = cached("speech", name, _read_corpus, make, progress)
    bad = sum(count for reason, count in corpus.skipped.items() if reason == "unreadable")
    if bad > config.bad_file_limit or not corpus.recordings:
        told = "; ".join(corpus.examples) or "the list is empty"
        raise DataError(
            f"{source}: {bad:,} recordings cannot be read (task.data.bad_file_limit {config.bad_file_limit}), "
            f"{len(corpus.recordings):,} can be used: {told}"
        )
    return corpus


def prepare(
    config: SpeechDataConfig,
    output_length: Callable[[int], int],
    vocab_size: int,
    seed: int,
    progress: Progress | None = None,
    alphabet: Alphabet | None = None,
) -> SpeechData:
    """Speech for a training, or, with an alphabet given, for a measurement.

    Args:
        output_length: steps that a model gives for so many frames.
        vocab_size: outputs of the model.
        alphabet: the one of a trained model; None makes one from the training texts.
    Raises:
        DataError: nothing usable is there, or too much cannot be read.
    """
    progress, measured = progress or (lambda stage, share: None), alphabet is not None
    listings = [list_recordings(source.path) for source in config.sources]
    names = [source.path for source in config.sources]
    corpora = [open_corpus(name, found, config, progress) for name, found in zip(names, listings, strict=True)]
    normal = english if config.text == "english" else lambda text: " ".join(text.split())
    held = held_back([stored for corpus in corpora for stored in corpus.recordings], config.valid_fraction, seed)
    spoken = [
        [Utterance(stored, corpus.audio, normal(stored.text), []) for stored in corpus.recordings] for corpus in corpora
    ]
    if alphabet is None:
        texts = [one.text for part in spoken for one in part if not held(one.stored)]
        alphabet = build_alphabet(config.units, texts, vocab_size)
    train, valid, sources = list[Utterance](), list[Utterance](), list[dict[str, Any]]()
    for name, listing, corpus, part in zip(names, listings, corpora, spoken, strict=True):
        sieve = _Sieve(alphabet, output_length, Counter(corpus.skipped), list(corpus.examples))
        kept = [(one, held(one.stored)) for one in part]
        mine = [spelled for one, back in kept if not back and (spelled := sieve.pass_(one)) is not None]
        theirs = [spelled for one, back in kept if back and (spelled := sieve.pass_(one)) is not None]
        train, valid = train + mine, valid + theirs
        sources.append(_described(name, listing, corpus, sieve, mine, theirs))
    if not (train or valid) if measured else not (train and valid):
        raise DataError(
            f"{', '.join(names)}: {len(train):,} utterances to learn from, {len(valid):,} held back, which is too few; "
            f"left out: {[source['skipped'] for source in sources]}"
        )
    report = {"form": "speech", "alphabet": _alphabet_facts(alphabet), "sources": sources}
    parts = [corpus.digest for corpus in corpora]
    words = [[one.stored.name, one.ids] for one in (*train, *valid)]
    return SpeechData(train, valid, alphabet, report, key(parts, words, len(train), alphabet.symbols))


def held_back(recordings: Sequence[Stored], fraction: float, seed: int) -> Callable[[Stored], bool]:
    """Which recordings are held back: those of a share of the speakers, or, of unknown ones, a share of the texts."""
    known = {one.speaker for one in recordings if one.speaker is not None}
    speakers = sorted(known, key=lambda name: _draw(seed, name))
    chosen = set(speakers[: max(1, round(len(speakers) * fraction))]) if len(speakers) > 1 else None

    def held(one: Stored) -> bool:
        if one.speaker is not None and chosen is not None:
            return one.speaker in chosen
        return _draw(seed, one.text) < fraction

    return held


def open_noise(folder: str, progress: Progress | None = None) -> tuple[list[Utterance], str]:
    """Recordings of noise, and their digest; of any length up to an hour.

    Raises:
        DataError: there are none.
    """
    listing = list_sounds(Path(folder).expanduser())
    config = SpeechDataConfig(sources=(SourceConfig(path=folder),), max_seconds=3600.0)
    corpus = open_corpus(folder, listing, config, progress or (lambda stage, share: None))
    return [Utterance(stored, corpus.audio, "", []) for stored in corpus.recordings], corpus.digest


def feature_statistics(
    utterances: Sequence[Utterance], config: FeatureConfig
) -> tuple[Float[Tensor, "M"], Float[Tensor, "M"]]:
    """Mean and deviation of every bin over utterances spread evenly through the training set."""
    count = min(len(utterances), STATISTICS_UTTERANCES)
    frames, total, squares = 0, torch.zeros(config.bins).double(), torch.zeros(config.bins).double()
    for index in range(count):
        features = utterance_features(utterances[index * len(utterances) // count].samples(), config).double()
        frames += features.shape[1]
        total += features.sum(1)
        squares += features.square().sum(1)
    return mean_and_deviation(frames, total, squares)


class _Sieve:
    """Lets pass what a model can learn, spelled; counts and names the rest."""

    def __init__(
        self, alphabet: Alphabet, output_length: Callable[[int], int], skipped: Counter[str], examples: list[str]
    ) -> None:
        self.alphabet, self.output_length = alphabet, output_length
        self.skipped, self.examples, self.outside = skipped, examples, set[str]()

    def pass_(self, one: Utterance) -> Utterance | None:
        outside = self.alphabet.outside(one.text)
        self.outside |= outside
        if not one.text:
            self._drop("no words", one, "its text is empty")
        elif outside:
            self._drop("characters outside the alphabet", one, listed(outside))
        else:
            ids, steps = self.alphabet.encode(one.text), self.output_length(one.frames)
            if (needed := least_steps(ids)) <= steps:
                return one._replace(ids=ids)
            self._drop("longer than the frames allow", one, f"{needed} labels in {steps} steps: {one.text[:60]!r}")
        return None

    def _drop(self, reason: str, one: Utterance, why: str) -> None:
        self.skipped[reason] += 1
        if self.skipped[reason] <= NAMED:
            self.examples.append(f"{one.stored.name}: {reason}: {why}")


def least_steps(ids: list[int]) -> int:
    """Steps that CTC needs at least to spell outputs."""
    return int(frames_needed(torch.tensor([ids], dtype=torch.int64), torch.tensor([len(ids)])))


def report_lines(report: dict[str, Any]) -> list[str]:
    """The report as lines of plain text."""
    facts = report["alphabet"]
    unused = f", {facts['unused']:,} outputs without use" if facts["unused"] else ""
    lines = [f"alphabet   {facts['symbols']:,} outputs{unused}, sha256 {facts['sha256'][:12]}"]
    for source in report["sources"]:
        speakers = f" of {source['speakers']:,} speakers" if source["speakers"] else ""
        lines.append(f"source     {source['source']}")
        lines.append(f"           {source['utterances']:,} utterances{speakers}, {source['hours']:.2f} hours")
        lines.append(f"           held back: {source['valid']['utterances']:,} utterances")
        for title, counts in (("left out", source["skipped"]), ("rows of other splits", source["other_splits"])):
            if counts:
                lines.append(f"           {title}: " + ", ".join(f"{count:,} {name}" for name, count in counts.items()))
        if source["outside"]:
            lines.append(f"           characters outside the alphabet: {source['outside']}")
        lines += [f"             {example}" for example in source["skipped_examples"]]
    return lines


def _described(
    name: str, listing: Listing, corpus: Corpus, sieve: _Sieve, train: list[Utterance], valid: list[Utterance]
) -> dict[str, Any]:
    seconds = sum(one.stored.samples for one in (*train, *valid)) / RATE
    return {
        "source": name,
        "utterances": len(train) + len(valid),
        "speakers": len({one.stored.speaker for one in (*train, *valid)} - {None}),
        "hours": seconds / 3600,
        "characters": sum(len(one.text) for one in (*train, *valid)),
        "valid": {"utterances": len(valid), "speakers": len({one.stored.speaker for one in valid} - {None})},
        "skipped": dict(sieve.skipped),
        "skipped_examples": sieve.examples,
        "outside": listed(sieve.outside),
        "other_splits": listing.other_splits,
        "sha256": corpus.digest,
    }


def _alphabet_facts(alphabet: Alphabet) -> dict[str, Any]:
    unused = sum(not symbol for symbol in alphabet.symbols[1:])
    return {"symbols": len(alphabet), "unused": unused, "sha256": key(alphabet.symbols)}


def _store(
    folder: Path, source: str, recordings: list[Recording], config: SpeechDataConfig, progress: Progress
) -> None:
    """Decode recordings one by one; never more than one is held."""
    skipped, examples, rows, digest, start = Counter[str](), list[str](), list[Any](), hashlib.sha256(), 0
    with (folder / "samples.i16").open("wb") as out:
        for number, recording in enumerate(recordings):
            progress(f"reading recordings of {source}", number / len(recordings))
            reason = None
            try:
                samples, reason = _within(recording, config)
            except DataError as error:
                reason, samples = "silent" if ": silent;" in str(error) else "unreadable", None
                if skipped[reason] < NAMED:
                    examples.append(str(error))
            if samples is None:
                skipped[str(reason)] += 1
                continue
            scale = float(np.abs(samples).max()) / _FULL
            data = np.round(samples / scale).astype("<i2").tobytes()
            out.write(data)
            digest.update(data)
            rows.append([recording.name, recording.text, recording.speaker, start, len(samples), scale])
            start += len(samples)
    digest.update(json.dumps(rows).encode())
    index = {"recordings": rows, "skipped": skipped, "examples": examples, "digest": digest.hexdigest()}
    (folder / "index.json").write_text(json.dumps(index), encoding="utf-8")


def _within(recording: Recording, config: SpeechDataConfig) -> tuple[Any, str | None]:
    """Samples within the limits of length, or why not; a header that tells of a longer one saves the reading."""
    if recording.file is not None:
        if not recording.file.exists():
            raise DataError(f"{recording.file}: no such file")
        seconds = probe_audio(recording.file).seconds
        if seconds is not None and seconds > config.max_seconds:
            return None, "longer than max_seconds"
    samples = recording.read()
    if len(samples) > config.max_seconds * RATE:
        return None, "longer than max_seconds"
    return (samples, None) if len(samples) >= config.min_seconds * RATE else (None, "shorter than min_seconds")


def _read_corpus(content: Path) -> Corpus | None:
    """What was stored; None if it is missing or not whole."""
    try:
        index = json.loads((content / "index.json").read_text(encoding="utf-8"))
        rows = [Stored(*row) for row in index["recordings"]]
        total = sum(row.samples for row in rows)
        if (content / "samples.i16").stat().st_size != 2 * total:
            return None
        audio = np.memmap(content / "samples.i16", "<i2", "r") if total else np.zeros(0, "<i2")
        return Corpus(rows, audio, index["skipped"], index["examples"], index["digest"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _resampling() -> str:
    try:
        import soxr
    except ImportError:
        return "polyphase"
    return f"soxr {soxr.__version__}"


def _draw(seed: int, name: str) -> float:
    """A number from 0 to 1 that a name decides."""
    return int(hashlib.sha256(f"{seed} {name}".encode()).hexdigest()[:13], 16) / 16**13
