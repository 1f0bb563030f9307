"""Transcription learned with CTC: batches, loss, evaluation.

    loss = Σ over utterances of -ln p(transcript | recording)

The sum runs over the utterances of a step and is divided by their number (Deep Speech 2, section 3.1). With batch
normalization a step is one forward pass, since its statistics are those of the whole minibatch; without, it may be
taken in pieces.
"""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from seqloom.core.cache import key
from seqloom.core.errors import CheckpointError
from seqloom.core.progress import Progress
from seqloom.ops.ctc import ctc_loss
from seqloom.systems.deep_speech2.batches import Batches
from seqloom.systems.deep_speech2.config import Run
from seqloom.systems.deep_speech2.data import (
    Utterance,
    feature_statistics,
    least_steps,
    open_noise,
    prepare,
    report_lines,
)
from seqloom.systems.deep_speech2.evaluate import evenly, labels, listen, measure, stack
from seqloom.systems.deep_speech2.features import frame_count, utterance_features
from seqloom.systems.deep_speech2.model import DeepSpeech2
from seqloom.systems.deep_speech2.noise import BUILT_IN, Augmenter
from seqloom.train.task import Loss


class Micro(NamedTuple):
    """Utterances that go through the model together.

    Attributes:
        lengths: frames of each.
        targets: outputs that spell each transcript, with their numbers in `counts`.
    """

    features: Float[Tensor, "B M T"]
    lengths: Int[Tensor, "B"]
    targets: Int[Tensor, "B L"]
    counts: Int[Tensor, "B"]

    def split(self, size: int) -> list["Micro"]:
        """The same in pieces of so many utterances, each as long as its longest."""
        pieces = [Micro(*part) for part in zip(*(tensor.split(size) for tensor in self), strict=True)]
        return [
            piece._replace(
                features=piece.features[..., : int(piece.lengths.max())],
                targets=piece.targets[:, : int(piece.counts.max())],
            )
            for piece in pieces
        ]


class SpeechTask:
    """Speech recognition on the recordings of a run."""

    unit = "utterances"
    shown: Mapping[str, str] = MappingProxyType({"epoch": "epochs"})

    def __init__(self, run: Run, device: torch.device, progress: Progress | None = None) -> None:
        self.run, self.device = run, device
        task, output_length = run.task, run.model.output_length
        self.data = prepare(task.data, output_length, run.model.vocab_size, run.seed, progress)
        train, self._noise_digest = self.data.train, ""
        noise: list[Utterance] = []
        if task.augment.noise != BUILT_IN and task.augment.noise_fraction > 0:
            noise, self._noise_digest = open_noise(task.augment.noise, progress)
        self._augment = Augmenter(task.augment, run.seed, train, noise)
        self._batches = Batches([one.frames for one in train], task.batch_rows, run.seed, sorta_grad=task.sorta_grad)
        self._statistics = feature_statistics(train, run.model.features)

    def check(self, model: nn.Module) -> None:
        """Nothing that a model of this run could get wrong is left to check."""
        assert isinstance(model, DeepSpeech2)

    def next_batch(self, model: nn.Module, step: int) -> list[Micro]:
        """The micro-batches of a step, with the noise of its epoch.

        A model that begins also learns here what its inputs look like and what its outputs stand for.
        """
        assert isinstance(model, DeepSpeech2)
        model.normaliser.learn(*self._statistics)
        model.alphabet = self.data.alphabet
        epoch, rows = self._batches.at(step)
        features = [utterance_features(self._sound(index, epoch), self.run.model.features) for index in rows]
        batch, lengths = stack(features)
        targets, counts = labels([self.data.train[index] for index in rows])
        whole = Micro(*(tensor.to(self.device) for tensor in (batch, lengths, targets, counts)))
        return whole.split(self.run.task.micro_rows or len(rows))

    def smallest(self, batch: list[Micro]) -> list[Micro]:
        """Utterance by utterance where no statistics bind them together, else the batch."""
        if self.run.model.norm != "none":
            return batch
        return [row for micro in batch for row in micro.split(1)]

    def loss(self, model: nn.Module, micro: Micro) -> Loss:
        """Nats of all transcripts, and the share of frames that are padding."""
        logits, steps = model(micro.features, micro.lengths)
        costs = ctc_loss(logits, steps, micro.targets, micro.counts)
        total, rows = costs.sum(), len(micro.lengths)
        padding = 1 - micro.lengths.sum() / (rows * micro.features.shape[2])
        return Loss(total, rows, {"loss": total.detach(), "padding": padding * rows}, {"loss": total})

    def after_step(self, model: nn.Module, step: int) -> dict[str, float]:
        return {"epoch": (step + 1) / self._batches.per_epoch}

    def evaluate(self, model: nn.Module, step: int) -> dict[str, float]:
        """Loss in nats per utterance, character and word error rates on held-out utterances without noise."""
        assert isinstance(model, DeepSpeech2)
        chosen = evenly(self.data.valid, self.run.task.evaluate_rows)
        rows = self.run.task.micro_rows or self.run.task.batch_rows
        return measure(list(listen(model, chosen, self.data.alphabet, rows)))

    def sample(self, model: nn.Module) -> dict[str, str]:
        """The words of the first held-out utterance, and what the model hears."""
        assert isinstance(model, DeepSpeech2)
        (heard,) = listen(model, self.data.valid[:1], self.data.alphabet)
        return {"prompt": heard.utterance.text, "text": f" -> {heard.text}"}

    def report(self) -> dict[str, Any]:
        return self.data.report | {"steps_per_epoch": self._batches.per_epoch}

    def summary(self) -> list[str]:
        """The report as lines."""
        return [*report_lines(self.data.report), f"steps      {self._batches.per_epoch:,} an epoch"]

    def fingerprint(self) -> str:
        return key(self.data.fingerprint, self._noise_digest)

    def write_assets(self, folder: Path) -> None:
        """Nothing: the model writes its alphabet itself."""

    def state(self) -> dict[str, Tensor]:
        return {}

    def load_state(self, state: dict[str, Tensor]) -> None:
        if state:
            raise CheckpointError("task state: batches of speech depend on seed and step alone, and have none")

    def close(self) -> None:
        """Nothing is held open."""

    def _sound(self, index: int, epoch: int) -> Float[Tensor, "N"]:
        needed = least_steps(self.data.train[index].ids)
        return self._augment(index, epoch, lambda samples: self.run.model.output_length(frame_count(samples)) >= needed)
