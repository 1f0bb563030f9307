"""Measuring a recogniser: CTC loss, character and word error rates of its most probable path.

    CER, WER = (substitutions + deletions + insertions) / length of the references        over the whole set at once

Spaces count as characters. Deep Speech 2, section 3 (without a language model).
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from seqloom.core.config import parse, read_yaml
from seqloom.core.devices import pick_device
from seqloom.core.errors import ConfigError
from seqloom.core.progress import Progress
from seqloom.core.rooms import load
from seqloom.data.config import SourceConfig
from seqloom.metrics.edit_distance import character_errors, word_errors
from seqloom.ops.ctc import ctc_loss
from seqloom.systems.deep_speech2.alphabet import Alphabet
from seqloom.systems.deep_speech2.config import Run, SpeechDataConfig
from seqloom.systems.deep_speech2.data import Utterance, prepare
from seqloom.systems.deep_speech2.features import utterance_features
from seqloom.systems.deep_speech2.model import DeepSpeech2
from seqloom.train.state import RUN

BATCH_ROWS = 16


class Heard(NamedTuple):
    """What a model makes of an utterance: nats of its transcript, and the most probable text."""

    utterance: Utterance
    nats: float
    text: str


WIDTH_STEP = 32
"""Batches are this many frames wide or a multiple of it: convolution libraries keep a plan in memory for every width
they meet, which over thousands of widths comes to gigabytes."""


def stack(features: Sequence[Float[Tensor, "M _"]]) -> tuple[Float[Tensor, "B M T"], Int[Tensor, "B"]]:
    """Spectrograms of different lengths as one batch, zero beyond each end, and their lengths."""
    lengths = torch.tensor([part.shape[1] for part in features])
    longest = -(-int(lengths.max()) // WIDTH_STEP) * WIDTH_STEP
    batch = torch.zeros(len(features), features[0].shape[0], longest)
    for row, part in zip(batch, features, strict=True):
        row[:, : part.shape[1]] = part
    return batch, lengths


def labels(utterances: Sequence[Utterance]) -> tuple[Int[Tensor, "B L"], Int[Tensor, "B"]]:
    """Transcripts as one batch, and their lengths."""
    lengths = torch.tensor([len(one.ids) for one in utterances])
    rows = [one.ids + [0] * (int(lengths.max()) - len(one.ids)) for one in utterances]
    return torch.tensor(rows), lengths


@torch.no_grad()
def listen(
    model: DeepSpeech2,
    utterances: Sequence[Utterance],
    alphabet: Alphabet,
    batch_rows: int = BATCH_ROWS,
    progress: Progress | None = None,
) -> Iterator[Heard]:
    """Transcribe utterances without noise, short ones first, in batches of like lengths."""
    device = model.head.weight.device
    ordered = sorted(utterances, key=lambda one: one.frames)
    for start in range(0, len(ordered), batch_rows):
        part = ordered[start : start + batch_rows]
        features, lengths = stack([utterance_features(one.samples(), model.config.features) for one in part])
        logits, steps = model(features.to(device), lengths.to(device))
        targets, counts = labels(part)
        nats = ctc_loss(logits, steps, targets.to(device), counts.to(device)).tolist()
        paths = logits.argmax(-1).tolist()
        for one, cost, path, count in zip(part, nats, paths, steps.tolist(), strict=True):
            yield Heard(one, cost, alphabet.greedy(path[:count]))
        if progress is not None:
            progress("transcribing", min(1.0, (start + batch_rows) / len(ordered)))


def measure(heard: Sequence[Heard]) -> dict[str, float]:
    """Loss in nats per utterance, character and word error rates, and what they were counted on."""
    said, found = [one.utterance.text for one in heard], [one.text for one in heard]
    words, letters = word_errors(said, found), character_errors(said, found)
    return {
        "loss": sum(one.nats for one in heard) / len(heard),
        "cer": letters.rate,
        "wer": words.rate,
        "utterances": len(heard),
        "words": words.length,
        "characters": letters.length,
    }


def evenly(utterances: Sequence[Utterance], limit: int | None) -> list[Utterance]:
    """At most so many, spread evenly over all."""
    count = min(len(utterances), limit or len(utterances))
    return [utterances[index * len(utterances) // count] for index in range(count)]


def evaluate(
    folder: Path,
    sources: tuple[SourceConfig, ...] = (),
    limit: int | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Measure a model folder on its run's held-back speech, or on all of the recordings named.

    Args:
        sources: recordings to measure on; without any, the folder must be a run folder.
        limit: most utterances; None takes all.
    Raises:
        ConfigError: neither a run nor sources say what to measure on.
        DataError, CheckpointError: the recordings or the folder cannot be used.
    """
    model: DeepSpeech2 = load(folder).to(pick_device("auto"))
    assert model.alphabet is not None
    utterances = chosen(model, folder, sources, limit, progress)
    return measure(list(listen(model, utterances, model.alphabet, progress=progress)))


def evaluate_errors(
    folder: Path,
    sources: tuple[SourceConfig, ...] = (),
    limit: int | None = None,
    progress: Progress | None = None,
    lm: Path | None = None,
) -> tuple[dict[str, Any], str]:
    """The same with a language model, or with every error in sight.

    Args:
        lm: an ARPA language model with its tuned weights beside it; None takes the most probable path.
    Returns:
        the measures, and a report that lays transcripts and what was heard side by side.
    """
    from seqloom.systems.deep_speech2.error_report import Said, error_report, to_text
    from seqloom.systems.deep_speech2.hear import decoded, hear
    from seqloom.systems.deep_speech2.transcribe import Recogniser

    recogniser = Recogniser(folder)
    heard = hear(recogniser, folder, sources, limit, progress)
    if lm is not None:
        said = decoded(heard, recogniser.prior(lm))
    else:
        greedy = recogniser.alphabet.greedy
        said = [Said(one.name, one.text, greedy(one.log_probs.argmax(-1).tolist())) for one in heard]
    found = error_report(said, spaced=" " in recogniser.alphabet.symbols)
    counts = {"utterances": len(said), "words": found.words.length, "characters": found.characters.length}
    return {"wer": found.words.rate, "cer": found.characters.rate, **counts}, to_text(found)


def chosen(
    model: DeepSpeech2, folder: Path, sources: tuple[SourceConfig, ...], limit: int | None, progress: Progress | None
) -> list[Utterance]:
    """A run's held-back utterances, or all of the recordings named; at most `limit`, spread evenly.

    Raises:
        ConfigError: neither a run nor sources say what to take.
        DataError: the recordings cannot be used.
    """
    assert model.alphabet is not None
    run = parse(Run, read_yaml(folder / RUN), str(folder / RUN)) if (folder / RUN).exists() else None
    if run is None and not sources:
        raise ConfigError(f"{folder}: no {RUN} says what this model was trained on; name recordings with --data PATH")
    data = run.task.data if run else SpeechDataConfig(sources=sources)
    data = replace(data, sources=sources or data.sources)
    seed = run.seed if run else 0
    found = prepare(data, model.config.output_length, len(model.alphabet), seed, progress, model.alphabet)
    return evenly([*found.train, *found.valid] if sources else found.valid, limit)
