"""The probe on models whose memory is known: one that looks up what it read, and one that has none."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from seqloom.data.rows import NO_DOCUMENT, Rows
from seqloom.studies.recall import AGAIN, BEFORE, SAVED, recall

VOCAB = 64


class Passages:
    """Rows of tokens in random order, none twice; the last one is half padding."""

    def __len__(self) -> int:
        return 6

    def rows(self, positions: list[int]) -> Rows:
        tokens = torch.stack([torch.randperm(VOCAB, generator=torch.Generator().manual_seed(p)) for p in positions])
        documents = torch.zeros_like(tokens, dtype=torch.int32)
        for place, position in enumerate(positions):
            if position == 5:
                documents[place, 32:] = NO_DOCUMENT
        return Rows(tokens, tokens, documents)


class Model(nn.Module):
    """Expects what followed the last time, as strongly as it is told to."""

    def __init__(self, strength: float) -> None:
        super().__init__()
        self.lm_head, self.strength = nn.Linear(1, VOCAB), strength

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        logits = torch.zeros(*tokens.shape, VOCAB)
        for place in range(tokens.shape[1]):
            before = (tokens[0, :place] == tokens[0, place]).nonzero()
            if len(before):
                logits[0, place, tokens[0, int(before[-1]) + 1]] = self.strength
        return logits


def test_a_model_that_looks_up_repeats_everything() -> None:
    found = recall(Model(30.0), Passages())
    assert found[AGAIN] == 1.0
    assert found[SAVED] == pytest.approx(1.0, abs=1e-6)
    assert found[BEFORE] < 0.1


def test_a_model_without_memory_saves_nothing() -> None:
    found = recall(Model(0.0), Passages())
    assert found[SAVED] == pytest.approx(0.0, abs=1e-6)
    assert found[AGAIN] == found[BEFORE]


def test_what_is_saved_is_a_share_of_the_first_reading() -> None:
    hit = -F.log_softmax(torch.tensor([2.0] + [0.0] * (VOCAB - 1)), 0)[0]
    expected = 1 - float(hit) / torch.log(torch.tensor(float(VOCAB))).item()
    assert recall(Model(2.0), Passages())[SAVED] == pytest.approx(expected, rel=1e-5)


def test_without_a_full_row_there_is_nothing_to_ask() -> None:
    class Padded(Passages):
        def rows(self, positions: list[int]) -> Rows:
            return super().rows([5])

    assert recall(Model(1.0), Padded()) == {}
