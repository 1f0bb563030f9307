"""Utterances heard once by the model, to be decoded as often as one likes: other weights, beams, language models."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor

from seqloom.core.config import parse, read_yaml
from seqloom.core.errors import ConfigError
from seqloom.core.progress import Progress
from seqloom.data.config import SourceConfig
from seqloom.systems.deep_speech2.beam_search import BeamConfig, decode
from seqloom.systems.deep_speech2.config import Run, SpeechDataConfig
from seqloom.systems.deep_speech2.data import prepare
from seqloom.systems.deep_speech2.error_report import Said
from seqloom.systems.deep_speech2.evaluate import evenly
from seqloom.systems.deep_speech2.prior import Prior
from seqloom.systems.deep_speech2.transcribe import BATCH_PIECES, Recogniser
from seqloom.train.state import RUN


class Heard(NamedTuple):
    """An utterance: its name, its transcript, and what the model made of its sound."""

    name: str
    text: str
    log_probs: Float[Tensor, "T V"]


def hear(
    recogniser: Recogniser,
    folder: Path,
    sources: tuple[SourceConfig, ...] = (),
    limit: int | None = None,
    progress: Progress | None = None,
) -> list[Heard]:
    """A run's held-out utterances, or the recordings named; short ones first.

    Args:
        limit: most utterances, spread evenly over all; None takes all.
    Raises:
        ConfigError: neither a run nor sources say what to hear.
        DataError: the recordings cannot be used.
    """
    model, alphabet = recogniser.model, recogniser.alphabet
    run = parse(Run, read_yaml(folder / RUN), str(folder / RUN)) if (folder / RUN).exists() else None
    if run is None and not sources:
        raise ConfigError(f"{folder}: no {RUN} says what this model was trained on; name recordings with --data PATH")
    data = run.task.data if run else SpeechDataConfig(sources=sources)
    data = replace(data, sources=sources or data.sources)
    found = prepare(data, model.config.output_length, len(alphabet), run.seed if run else 0, progress, alphabet)
    chosen = evenly([*found.train, *found.valid] if sources else found.valid, limit)
    chosen.sort(key=lambda one: one.frames)
    heard: list[Heard] = []
    for start in range(0, len(chosen), BATCH_PIECES):
        part = chosen[start : start + BATCH_PIECES]
        outputs = recogniser.log_probs([one.samples().numpy() for one in part])
        heard += [Heard(one.stored.name, one.text, log_probs) for one, log_probs in zip(part, outputs, strict=True)]
        if progress:
            progress("hearing", len(heard) / len(chosen))
    return heard


def decoded(heard: Sequence[Heard], rules: Prior, config: BeamConfig | None = None) -> list[Said]:
    """The best text of every utterance beside its transcript, for rates and reports of errors."""
    return [Said(one.name, one.text, decode(one.log_probs, rules, config)[0].text) for one in heard]
