"""A task whose evaluation also hears the held-out speech through a crowd: babble of other speakers at 5 to 10 dB.

Noise and ratio of an utterance are drawn from its place alone, so every model of every seed hears the same.
Paper: Deep Speech 2, section 6 (development sets come regular and noisy).
"""

from typing import TYPE_CHECKING

from seqloom.core.config import config
from seqloom.core.progress import Progress
from seqloom.systems.deep_speech2.config import Run, SpeechTaskConfig

if TYPE_CHECKING:
    import torch

    from seqloom.systems.deep_speech2.data import Utterance
    from seqloom.systems.deep_speech2.task import SpeechTask

NOISY_CER, NOISY_WER = "cer_noisy", "wer_noisy"
LOWEST, HIGHEST = 5.0, 10.0
"""Ratio of speech to babble, in decibels."""
VOICES = 4


@config
class NoisyTaskConfig(SpeechTaskConfig):
    """Transcription, also measured in noise."""

    def build(self, run: Run, device: "torch.device", progress: Progress | None = None) -> "SpeechTask":
        from torch import nn

        from seqloom.systems.deep_speech2.evaluate import evenly, listen, measure
        from seqloom.systems.deep_speech2.model import DeepSpeech2
        from seqloom.systems.deep_speech2.task import SpeechTask

        class NoisyTask(SpeechTask):
            def evaluate(self, model: nn.Module, step: int) -> dict[str, float]:
                assert isinstance(model, DeepSpeech2)
                noisy = with_babble(evenly(self.data.valid, run.task.evaluate_rows))
                found = measure(list(listen(model, noisy, self.data.alphabet, run.task.batch_rows)))
                return super().evaluate(model, step) | {NOISY_CER: found["cer"], NOISY_WER: found["wer"]}

        return NoisyTask(run, device, progress)


def with_babble(utterances: "list[Utterance]") -> "list[Utterance]":
    """The same utterances among the voices of four others of them."""
    import torch

    from seqloom.core.seeds import generator
    from seqloom.systems.deep_speech2.noise import mix

    found = []
    for number, one in enumerate(utterances):
        draw, speech = generator(0, "babble", number), one.samples()
        ratio = LOWEST + (HIGHEST - LOWEST) * float(torch.rand((), generator=draw))
        voices = []
        for place in torch.randint(len(utterances), (VOICES,), generator=draw).tolist():
            other = utterances[place].samples()
            start = int(torch.randint(len(other), (), generator=draw))
            level = other.square().mean().sqrt().clamp(min=1e-8)
            voices.append(other.roll(-start).repeat(-(-len(speech) // len(other)))[: len(speech)] / level)
        sound = mix(speech, torch.stack(voices).sum(0), ratio).numpy()
        stored = one.stored._replace(start=0, samples=len(sound), scale=1.0)
        found.append(one._replace(stored=stored, audio=sound))
    return found
