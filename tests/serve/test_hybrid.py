"""The engine on the hybrid model: every layer kind's memory, in batches, pieces and drafts."""

import dataclasses

import pytest
import torch

from seqloom.serve import engine as engine_module
from seqloom.serve.engine import Engine
from seqloom.serve.sampling import Sampling
from tiny_models import make, tokens

GREEDY = Sampling(max_tokens=24, temperature=0)
LENGTHS = [1, 2, 17, 40, 5, 33]
PROMPTS = [tokens(1, length, seed=length)[0].tolist() for length in LENGTHS]


class Letters:
    """A letter a token; 0 to 2 are special."""

    bos, eos, size = 1, 2, 256

    def encode(self, text: str) -> list[int]:
        return [ord(letter) for letter in text]

    def decode(self, ids: list[int]) -> str:
        return "".join(chr(token) for token in ids if token >= 3)


@pytest.fixture(params=["dense", "moe", "mtp"])
def engine(request) -> Engine:
    return Engine((make(request.param), Letters()))


@pytest.fixture
def drafting() -> Engine:
    return Engine((make("mtp"), Letters()))


@torch.inference_mode()
def test_greedy_answers_equal_full_passes(engine) -> None:
    for prompt, answer in zip(PROMPTS, engine.generate(PROMPTS, GREEDY), strict=True):
        ids = torch.tensor([prompt + answer.token_ids])
        best = engine.model(ids)[0].argmax(-1).tolist()
        assert best[len(prompt) - 1 : -1] == answer.token_ids


@pytest.mark.parametrize("prefill", [1, 7, 512])
@pytest.mark.parametrize("max_rows", [1, 3, 32])
def test_pieces_and_neighbours_change_nothing(engine, monkeypatch, prefill: int, max_rows: int) -> None:
    settings = [Sampling(max_tokens=10 + index, temperature=1.2, seed=index) for index in range(len(PROMPTS))]
    alone = [engine.generate([prompt], each)[0] for prompt, each in zip(PROMPTS, settings, strict=True)]
    monkeypatch.setattr(engine_module, "PREFILL_TOKENS", prefill)
    engine.max_rows = max_rows
    assert engine.generate(PROMPTS, settings) == alone


@pytest.mark.parametrize("draft_tokens", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("temperature", [0.0, 1.2])
def test_drafting_changes_nothing(drafting, draft_tokens: int, temperature: float) -> None:
    sampling = dataclasses.replace(GREEDY, temperature=temperature, seed=1)
    plain = drafting.generate(PROMPTS, sampling)
    drafted = drafting.generate(PROMPTS, sampling, draft_tokens)
    assert [dataclasses.replace(answer, drafted_tokens=0, accepted_tokens=0) for answer in drafted] == plain
    assert all(answer.drafted_tokens for answer in drafted)
