"""Utterances heard once by the model, to be decoded as often as one likes: other weights, beams, language models."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor

from seqloom.core.progress import Progress
from seqloom.data.config import SourceConfig
from seqloom.systems.deep_speech2.beam_search import BeamConfig, decode
from seqloom.systems.deep_speech2.error_report import Said
from seqloom.systems.deep_speech2.evaluate import chosen
from seqloom.systems.deep_speech2.prior import Prior
from seqloom.systems.deep_speech2.transcribe import BATCH_PIECES, Recogniser


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
    utterances = sorted(chosen(recogniser.model, folder, sources, limit, progress), key=lambda one: one.frames)
    heard: list[Heard] = []
    for start in range(0, len(utterances), BATCH_PIECES):
        part = utterances[start : start + BATCH_PIECES]
        outputs = recogniser.log_probs([one.samples().numpy() for one in part])
        heard += [Heard(one.stored.name, one.text, log_probs) for one, log_probs in zip(part, outputs, strict=True)]
        if progress:
            progress("hearing", len(heard) / len(utterances))
    return heard


def decoded(heard: Sequence[Heard], rules: Prior, config: BeamConfig | None = None) -> list[Said]:
    """The best text of every utterance beside its transcript, for rates and reports of errors."""
    return [Said(one.name, one.text, decode(one.log_probs, rules, config)[0].text) for one in heard]
