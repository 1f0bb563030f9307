"""Beam search over some thousand characters, of which a frame leaves a few: with all of them, and with those few.

The text is a random chain over the characters, in which some of them follow each one; the sound gives the right
character a high probability among some that sound alike, and a little to all others. Nothing of it is speech, but the
shape of the problem is Mandarin's: many symbols, a language model of characters, a lookup for every symbol looked at.
Paper: Deep Speech 2, section 7 (symbols up to a probability of 0.99, at most 40).
"""

import time
from typing import Any

from seqloom.core.progress import Progress

LOOKUPS, RELATIVE_CER = 50, 0.003


def pruning_settings(scale: str) -> dict[str, Any]:
    """Sizes of the two searches."""
    small = {"characters": 5000, "utterances": 300, "length": 16, "beam": 32, "training_characters": 100_000}
    return small if scale == "laptop" else small | {"utterances": 1000, "length": 20, "beam": 200}


def pruning(settings: dict[str, Any], progress: Progress) -> dict[str, Any] | None:
    """Error rate, lookups and seconds of both searches; None without the native decoder."""
    import numpy as np
    import torch

    from seqloom.core.seeds import derive, generator
    from seqloom.metrics.edit_distance import character_error_rate
    from seqloom.ops import kernels
    from seqloom.systems.deep_speech2.beam_search import BeamConfig, Decoder
    from seqloom.systems.deep_speech2.ngram_estimate import estimate
    from seqloom.systems.deep_speech2.prior import LanguageModel, Weights, prior

    if kernels.chosen("ctc_beam", torch.device("cpu"), torch.float32) != "native":
        return None
    size, length, count = settings["characters"], settings["length"], settings["utterances"]
    symbols = ("", *(chr(0x4E00 + number) for number in range(size)))
    draw = np.random.default_rng(derive(0, "pruning"))
    follow = draw.integers(1, size + 1, (size + 1, 8))  # what may follow each character

    def chain(steps: int) -> list[int]:
        row = [int(draw.integers(1, size + 1))]
        while len(row) < steps:
            row.append(int(follow[row[-1], draw.integers(8)]))
        return row

    lines = [[symbols[label] for label in chain(50)] for _ in range(settings["training_characters"] // 50)]
    model = LanguageModel(estimate(lines, order=2).model, "character", Weights(alpha=0.5, beta=1.0))
    rules, texts = prior(symbols, model), [chain(length) for _ in range(count)]
    sounds = [_sound(text, size, generator(0, "sound", number)) for number, text in enumerate(texts)]
    found: dict[str, Any] = {}
    for name, config in {
        "pruned": BeamConfig(beam=settings["beam"], cutoff_prob=0.99, cutoff_top_n=40),
        "full": BeamConfig(beam=settings["beam"], cutoff_prob=1.0, cutoff_top_n=size + 1),
    }.items():
        said, lookups, start = [], 0, time.perf_counter()
        for number, sound in enumerate(sounds):
            decoder = Decoder(rules, config)
            decoder.accept(sound)
            said.append(decoder.result()[0].text)
            lookups += decoder.lookups or 0
            progress(f"decoding, {name}", (number + 1) / count)
        cer = character_error_rate(["".join(symbols[label] for label in text) for text in texts], said)
        found[name] = {"cer": cer, "lookups": lookups, "seconds": round(time.perf_counter() - start, 3)}
    return found


def _sound(text: list[int], size: int, draw: Any) -> Any:
    """Log-probabilities: two frames of each character, in which others sound alike, and a blank one behind it."""
    import torch

    frames = []
    for label in text:
        alike = torch.randint(1, size + 1, (6,), generator=draw)
        for frame in range(3):
            logits = torch.randn(size + 1, generator=draw)
            logits[0] = 19.0 if frame == 2 else 11.0
            if frame < 2:
                logits[alike] += 14.0 + torch.randn(6, generator=draw)
                logits[label] = 16.0 + 1.5 * float(torch.randn((), generator=draw))
            frames.append(logits.log_softmax(-1))
    return torch.stack(frames)
