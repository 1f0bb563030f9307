"""The engine on the hybrid model: every layer kind's memory, in batches, pieces and drafts."""

from pathlib import Path

import pytest
import torch

from seqloom.core.errors import DataError
from seqloom.data.tokenizer import train_tokenizer
from seqloom.serve.config import Sampling
from seqloom.serve.engine import Engine
from tiny_models import make, tokens

PROMPTS = [tokens(1, length, seed=length)[0].tolist() for length in (15, 15, 14, 40, 1)]
SETTINGS = [
    Sampling(max_tokens=9 - index, temperature=1.2, seed=index, logprobs=1, ignore_eos=True)
    for index in range(len(PROMPTS))
]


class Letters:
    """A letter a token; 0 to 2 are special."""

    bos, eos, size = 1, 2, 256

    def encode(self, text: str, *, specials: bool = False) -> list[int]:
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


def answers(engine: Engine, draft_tokens: int = 0) -> list[tuple[list[int], object]]:
    found = engine.generate(PROMPTS, SETTINGS, draft_tokens)
    assert engine.statistics.pages_free == engine.statistics.pages
    return [(answer.token_ids, answer.logprobs) for answer in found]


@pytest.mark.parametrize("variant", ["mtp", pytest.param("dense", marks=pytest.mark.full)])
def test_nothing_changes_an_answer(variant: str) -> None:
    """Neither neighbours, pieces, prefixes nor guesses change a bit, nor does a memory that is too small."""
    model = make(variant)
    alone = answers(Engine((model, Letters()), max_rows=1, prefix_cache=False))
    for draft_tokens, settings in (
        (0, {}),
        (3, {"prefill_tokens": 7, "max_rows": 3}),
        (5, {"cache_tokens": 80}),
    ):
        engine = Engine((model, Letters()), page_tokens=16, **settings)
        assert answers(engine, draft_tokens) == alone, settings
        assert answers(engine, draft_tokens) == alone, settings
        if not settings:
            assert engine.statistics.prefix_hit_tokens == 32
    assert engine.statistics.preemptions
    if variant == "mtp":
        assert 0 < sum(engine.statistics.accepted) < sum(engine.statistics.drafted)


@pytest.mark.full
@pytest.mark.parametrize("variant", ["moe", "one_group"])
@pytest.mark.parametrize("states", [{"kv_cache": "fp8", "ssm_state": "fp16_sr"}, {"ssm_state": "int8_sr"}])
def test_nothing_changes_an_answer_over_narrow_states(variant: str, states: dict[str, str]) -> None:
    model = make(variant)
    alone = answers(Engine((model, Letters()), max_rows=1, prefix_cache=False, **states))
    engine = Engine((model, Letters()), page_tokens=16, prefill_tokens=24, drafter="ngram", **states)
    assert [answers(engine, draft_tokens) for draft_tokens in (0, 4)] == [alone, alone]
    assert engine.statistics.prefix_hit_tokens


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
