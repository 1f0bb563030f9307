"""Which transcripts are wrong? A linear classifier on what a recogniser makes of each.

    p(wrong) = σ(w · x + b),   x = (cost, cost / frames, cost / characters, frames / characters, words, characters)

with the CTC cost in nats of a model that has not learned from the transcripts in question. It learns from transcripts
that were spoiled on purpose: words of another recording, words that are missing at an end, words of a neighbour too
many. It is measured on recordings that it has not learned from, with p > 1/2 counting as wrong.
Paper: Deep Speech 2, section 5.1, which learns it from transcripts checked by people.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from seqloom.core.config import parse, read_yaml
from seqloom.core.devices import pick_device
from seqloom.core.errors import ConfigError, DataError
from seqloom.core.progress import Progress
from seqloom.core.rooms import load
from seqloom.core.seeds import derive
from seqloom.data.config import SourceConfig
from seqloom.systems.deep_speech2.alphabet import Alphabet
from seqloom.systems.deep_speech2.config import Run, SpeechDataConfig
from seqloom.systems.deep_speech2.data import Utterance, least_steps, prepare
from seqloom.systems.deep_speech2.evaluate import Heard, listen
from seqloom.systems.deep_speech2.model import DeepSpeech2
from seqloom.systems.deep_speech2.recordings import list_recordings
from seqloom.train.state import RUN

Floats = NDArray[np.float64]
FEATURES = ("cost", "cost / frames", "cost / characters", "frames / characters", "words", "characters")
LEAST = 20
"""Fewest recordings that a classifier is learned from."""


@dataclass(frozen=True, eq=False)
class Classifier:
    """Logistic regression.

    Attributes:
        mean, deviation: of the features it learned from.
        weights: of the features at mean 0 and deviation 1; the offset comes last.
    """

    mean: Floats
    deviation: Floats
    weights: Floats

    def __call__(self, features: Floats) -> Floats:
        """The probability of being wrong, of every row."""
        return _sigmoid(_with_one((features - self.mean) / self.deviation) @ self.weights)


@dataclass(frozen=True)
class Judged:
    """A recording, and the probability that its transcript is wrong."""

    name: str
    text: str
    wrong: float


@dataclass(frozen=True, kw_only=True)
class Quality:
    """How well a classifier finds spoiled transcripts that it has not learned from.

    Attributes:
        precision: share of those it calls wrong that were spoiled; 0 if it calls none so.
        recall: share of the spoiled that it calls wrong.
        kept_wrong: share of spoiled ones among those it keeps.
        spoiled, utterances: how many there were.
    """

    precision: float
    recall: float
    kept_wrong: float
    spoiled: int
    utterances: int


@dataclass(frozen=True, kw_only=True)
class Filtered:
    """Recordings judged by their own transcripts, and how far the judge can be trusted.

    Attributes:
        judged: all of them, the most doubtful first.
        weights: feature -> weight at mean 0 and deviation 1.
    """

    judged: tuple[Judged, ...]
    quality: Quality
    weights: dict[str, float]

    def kept(self, threshold: float = 0.5) -> set[str]:
        """Names of the recordings whose transcripts are probably right."""
        return {one.name for one in self.judged if one.wrong <= threshold}


def learn(features: Floats, wrong: NDArray[np.bool_], decay: float = 1.0, rounds: int = 50) -> Classifier:
    """The weights of the highest likelihood under a Gaussian prior, by Newton's method.

    Args:
        features: a row for every transcript.
        decay: of the weights, not of the offset: the prior's precision.
    """
    assert wrong.any()
    assert not wrong.all()
    mean, deviation = features.mean(0), np.maximum(features.std(0), 1e-9)
    x, y = _with_one((features - mean) / deviation), wrong.astype(np.float64)
    prior = np.full(x.shape[1], decay)
    prior[-1] = 0.0
    weights: Floats = np.zeros(x.shape[1])
    for _ in range(rounds):
        p = _sigmoid(x @ weights)
        gradient = x.T @ (p - y) + prior * weights
        curvature = (x.T * (p * (1 - p))) @ x + np.diag(prior + 1e-9)
        move: Floats = np.asarray(np.linalg.solve(curvature, gradient), np.float64)
        move *= min(1.0, 4.0 / max(1e-12, float(np.abs(move).max())))  # no leaps where p saturates
        weights -= move
        if np.abs(move).max() < 1e-9:
            break
    return Classifier(mean, deviation, weights)


def features_of(heard: Sequence[Heard]) -> Floats:
    """A row of FEATURES for every utterance."""
    rows = []
    for one in heard:
        frames, characters, words = one.utterance.frames, len(one.utterance.text), len(one.utterance.text.split())
        rows.append(
            (one.nats, one.nats / frames, one.nats / characters, frames / characters, float(words), float(characters))
        )
    return np.array(rows, dtype=np.float64)


def spoil(
    utterances: Sequence[Utterance], fraction: float, alphabet: Alphabet, fits: Callable[[Utterance], bool], seed: int
) -> tuple[list[Utterance], NDArray[np.bool_]]:
    """The utterances, a share of them with wrong transcripts, and which.

    Args:
        fits: whether the sound has steps enough for the transcript.
        seed: of what is spoiled, and how.
    """
    draw = np.random.default_rng(derive(seed, "spoil"))
    count, found = max(1, round(fraction * len(utterances))), list(utterances)
    spoiled = np.zeros(len(found), dtype=np.bool_)
    for place in draw.permutation(len(found)).tolist():
        if spoiled.sum() == count:
            break
        mine, other = utterances[place].text, utterances[int(draw.integers(len(found)))].text
        text = _wrong(mine, other, draw)
        changed = utterances[place]._replace(text=text, ids=alphabet.encode(text))
        if text and text != mine and fits(changed):
            found[place], spoiled[place] = changed, True
    return found, spoiled


def _wrong(mine: str, other: str, draw: np.random.Generator) -> str:
    """Another's words, one's own without the first or the last, or both in one."""
    kind, words = draw.integers(4), mine.split()
    if kind == 0 and len(words) > 1:
        return " ".join(words[1:] if draw.integers(2) else words[:-1])
    if kind == 1:
        return f"{mine} {other.split()[0]}" if draw.integers(2) else f"{other.split()[-1]} {mine}"
    return other


def measure(classifier: Classifier, features: Floats, spoiled: NDArray[np.bool_]) -> Quality:
    """Precision and recall on transcripts that the classifier has not learned from."""
    called = classifier(features) > 0.5
    hits = int((called & spoiled).sum())
    return Quality(
        precision=hits / max(1, int(called.sum())),
        recall=hits / max(1, int(spoiled.sum())),
        kept_wrong=(int(spoiled.sum()) - hits) / max(1, int((~called).sum())),
        spoiled=int(spoiled.sum()),
        utterances=len(spoiled),
    )


def filter_transcripts(
    folder: Path,
    sources: tuple[SourceConfig, ...] = (),
    corrupt_fraction: float = 0.2,
    seed: int = 0,
    progress: Progress | None = None,
) -> Filtered:
    """Judge the transcripts of recordings with a model folder.

    A random half of the recordings teaches a classifier what spoiled transcripts look like, the other half measures it;
    then all of them are judged by the transcripts they have.

    Args:
        sources: without any, the held-back speech of the folder's run.
        corrupt_fraction: share of the transcripts that is spoiled to learn from and to measure on.
    Raises:
        ConfigError: no sources and no run, or a share that leaves nothing right or nothing wrong.
        DataError: too few recordings can be used.
    """
    if not 0 < corrupt_fraction < 1:
        raise ConfigError(f"corrupt_fraction: {corrupt_fraction} is not allowed; it must lie between 0 and 1")
    model: DeepSpeech2 = load(folder).to(pick_device("auto"))
    alphabet = model.alphabet
    assert alphabet is not None
    utterances = _utterances(folder, model, alphabet, sources, progress)
    if len(utterances) < LEAST:
        raise DataError(f"{folder}: {len(utterances)} recordings can be judged, and at least {LEAST} are needed")

    def hear(spoken: Sequence[Utterance]) -> list[Heard]:
        """In the order given, which the name tells."""
        by_name = {one.utterance.stored: one for one in listen(model, spoken, alphabet, progress=progress)}
        return [by_name[one.stored] for one in spoken]

    def fits(one: Utterance) -> bool:
        return least_steps(one.ids) <= model.config.output_length(one.frames)

    spoken, spoiled = spoil(utterances, corrupt_fraction, alphabet, fits, seed)
    half = np.random.default_rng(derive(seed, "half")).permutation(len(spoken)) < len(spoken) // 2
    if not all(spoiled[side].any() and not spoiled[side].all() for side in (half, ~half)):
        raise DataError(
            f"{folder}: {int(spoiled.sum())} spoiled of {len(spoken)} transcripts are too few to learn from"
        )
    found = features_of(hear(spoken))
    classifier = learn(found[half], spoiled[half])
    wrong = classifier(features_of(hear(utterances)))
    judged = [Judged(one.stored.name, one.text, round(float(p), 6)) for one, p in zip(utterances, wrong, strict=True)]
    return Filtered(
        judged=tuple(sorted(judged, key=lambda one: (-one.wrong, one.name))),
        quality=measure(classifier, found[~half], spoiled[~half]),
        weights=dict(zip(FEATURES, classifier.weights[:-1].round(4).tolist(), strict=True)),
    )


def write_kept(path: Path, sources: Sequence[SourceConfig], kept: set[str]) -> int:
    """Write JSON lines of the recordings that were kept, to be trained on with `--data PATH`; returns how many.

    Raises:
        DataError: recordings are made here and lie in no files, or the file cannot be written.
    """
    lines = []
    for source in sources:
        for recording in list_recordings(source.path).recordings:
            if recording.name not in kept:
                continue
            if recording.file is None:
                raise DataError(f"{source.path}: its recordings lie in no files, so no list can name them")
            row: dict[str, Any] = {"audio": str(recording.file.absolute()), "text": recording.text}
            lines.append(json.dumps(row | ({"speaker": recording.speaker} if recording.speaker else {})))
    try:
        path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    except OSError as error:
        raise DataError(f"{path}: cannot be written: {error.strerror}") from error
    return len(lines)


def _utterances(
    folder: Path, model: DeepSpeech2, alphabet: Alphabet, sources: tuple[SourceConfig, ...], progress: Progress | None
) -> list[Utterance]:
    run = parse(Run, read_yaml(folder / RUN), str(folder / RUN)) if (folder / RUN).exists() else None
    if run is None and not sources:
        raise ConfigError(f"{folder}: no {RUN} says what this model was trained on; name recordings with --data PATH")
    data = run.task.data if run else SpeechDataConfig(sources=sources)
    data = replace(data, sources=sources or data.sources)
    seed = run.seed if run else 0
    prepared = prepare(data, model.config.output_length, len(alphabet), seed, progress, alphabet)
    return [*prepared.train, *prepared.valid] if sources else prepared.valid


def _with_one(x: Floats) -> Floats:
    return np.concatenate((x, np.ones((len(x), 1))), axis=1)


def _sigmoid(x: Floats) -> Floats:
    return np.asarray(1 / (1 + np.exp(-np.clip(x, -500, 500))))
