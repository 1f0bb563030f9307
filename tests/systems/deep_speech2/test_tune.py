"""The weights of a language model, chosen by errors."""

import pytest
import torch

from seqloom.systems.deep_speech2.alphabet import ENGLISH
from seqloom.systems.deep_speech2.beam_search import BeamConfig
from seqloom.systems.deep_speech2.hear import Heard
from seqloom.systems.deep_speech2.ngram_estimate import estimate
from seqloom.systems.deep_speech2.prior import LanguageModel, prior
from seqloom.systems.deep_speech2.tune import table, tune
from speech_samples import spoken

TEXTS = ["turn left", "turn right now", "go left", "go on", "turn left now"]


def test_the_best_pair_beats_no_language_model() -> None:
    rules = prior(ENGLISH, LanguageModel(estimate([text.split() for text in TEXTS], 2).model))
    heard = []
    for seed, text in enumerate(TEXTS):
        noise = torch.randn(3 * len(text), len(ENGLISH), generator=torch.Generator().manual_seed(seed))
        heard.append(Heard(str(seed), text, (spoken(text, sure=0.5) + noise).log_softmax(-1)))
    found = tune(heard, rules, BeamConfig(beam=20), alphas=(0.0, 1.0), betas=(0.0, 2.0))
    best = found.tried[0]
    assert best.wer < found.without.wer
    assert best.wer == min(one.wer for one in found.tried)
    assert (found.weights.alpha, found.weights.beta) == (best.alpha, best.beta)
    assert len({(one.alpha, one.beta) for one in found.tried}) == len(found.tried) > 4
    plain = next(one for one in found.tried if (one.alpha, one.beta) == (0.0, 0.0))
    assert plain.wer == pytest.approx(found.without.wer)
    assert len(table(found).splitlines()) == 2 + min(10, len(found.tried))
