"""The engine on the hybrid model: every layer kind's memory, in batches, pieces and drafts."""

import dataclasses
from pathlib import Path

import pytest
import torch

from seqloom.core.errors import DataError
from seqloom.data.tokenizer import train_tokenizer
from seqloom.serve import engine as engine_module
from seqloom.serve.config import Sampling
from seqloom.serve.engine import Engine
from seqloom.serve.request import Request
from tiny_models import make, tokens

PROMPTS = [tokens(1, length, seed=length)[0].tolist() for length in (1, 2, 17, 40, 5)]
SETTINGS = [Sampling(max_tokens=4 + index, temperature=1.2, seed=index) for index in range(len(PROMPTS))]


class Letters:
    """A letter a token; 0 to 2 are special."""

    bos, eos, size = 1, 2, 256

    def encode(self, text: str) -> list[int]:
        return [ord(letter) for letter in text]

    def decode(self, ids: list[int]) -> str:
        return "".join(chr(token) for token in ids if token >= 3)


@torch.inference_mode()
@pytest.mark.parametrize("variant", ["dense", "moe", "mtp"])
def test_greedy_answers_equal_full_passes(variant: str) -> None:
    model = make(variant)
    answers = Engine((model, Letters())).generate(PROMPTS, Sampling(max_tokens=8, temperature=0))
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        best = model(torch.tensor([prompt + answer.token_ids]))[0].argmax(-1).tolist()
        assert best[len(prompt) - 1 : -1] == answer.token_ids


def test_pieces_and_neighbours_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine((make("mtp"), Letters()))
    alone = [engine.generate([prompt], each)[0] for prompt, each in zip(PROMPTS, SETTINGS, strict=True)]
    for prefill, engine.max_rows in [(512, 32), (7, 2), (1, 3)]:
        monkeypatch.setattr(engine_module, "PREFILL_TOKENS", prefill)
        assert engine.generate(PROMPTS, SETTINGS) == alone


@pytest.mark.parametrize("temperature", [0.0, 1.2])
def test_drafting_changes_nothing(temperature: float) -> None:
    engine = Engine((make("mtp"), Letters()))
    sampling = Sampling(max_tokens=9, temperature=temperature, seed=1)
    (plain,) = engine.generate([PROMPTS[2]], sampling)
    for draft_tokens in range(1, 8):
        (drafted,) = engine.generate([PROMPTS[2]], sampling, draft_tokens)
        assert dataclasses.replace(drafted, drafted_tokens=0, accepted_tokens=0) == plain
        assert drafted.drafted_tokens


@pytest.mark.parametrize("replay", [0, 5])
def test_states_go_back_after_any_number_of_right_guesses(replay: int, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine((make("mtp"), Letters()))
    sampling = Sampling(max_tokens=12, temperature=0)
    (plain,) = engine.generate([PROMPTS[2]], sampling)
    monkeypatch.setattr(engine_module, "REPLAY_TOKENS", replay)
    for right in (0, 1, 2, 4):

        def guess(request: Request, most: int, right: int = right) -> list[int]:
            known = plain.token_ids[len(request.tokens) :][: min(most, request.remaining - 1)]
            return [token if place < right else token ^ 1 for place, token in enumerate(known)]

        monkeypatch.setattr(Request, "guess", guess)
        (drafted,) = engine.generate([PROMPTS[2]], sampling, draft_tokens=4)
        assert drafted.token_ids == plain.token_ids
        assert drafted.accepted_tokens == len(plain.token_ids) - -(-len(plain.token_ids) // (right + 1))


def test_a_folder_is_all_an_engine_needs(tmp_path: Path) -> None:
    tokenizer = train_tokenizer(["def add(a, b):\n    return a + b\n"], vocab_size=280)
    model = make("mtp", vocab_size=280)
    model.write_folder(tmp_path)
    tokenizer.save(tmp_path)
    sampling = Sampling(max_tokens=5, seed=0)
    answers = Engine(tmp_path).generate(["def", ""], sampling)
    assert answers == Engine((model, tokenizer)).generate(["def", ""], sampling)
    with pytest.raises(DataError, match="280 tokens but the model only 256"):
        Engine((make("dense"), tokenizer))
