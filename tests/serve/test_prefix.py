"""What is found of earlier texts, when it is forgotten, and that it changes nothing but the tokens computed."""

import dataclasses

import pytest
import torch
from serve.toy_model import D, ToyModel, ToyTokenizer

from seqloom.serve.config import Sampling
from seqloom.serve.engine import Engine

PAGE = 4
STATE = 4 * D  # bytes of a copied state
SHORT = Sampling(max_tokens=6, temperature=0, logprobs=1)
LONG = [3, 4, 5, 6, 7, 8, 9, 10, 3, 5, 7, 9, 4, 6, 8, 10, 3, 3]  # four pages and two tokens


def make(**settings: object) -> Engine:
    return Engine((ToyModel(), ToyTokenizer()), page_tokens=PAGE, **settings)


def ask(engine: Engine, prompt: list[int], draft_tokens: int = 0, sampling: Sampling = SHORT) -> tuple[list[int], int]:
    """The answer, which must be that of an engine without a memory, and the tokens that were found."""
    (answer,) = engine.generate([prompt], sampling, draft_tokens)
    (wanted,) = make(prefix_cache=False).generate([prompt], sampling)
    assert (answer.token_ids, answer.logprobs, answer.text) == (wanted.token_ids, wanted.logprobs, wanted.text)
    found = engine.statistics
    assert found.pages_free == found.pages
    return answer.token_ids, answer.cached_tokens


def computed(engine: Engine, prompt: list[int], draft_tokens: int = 0) -> int:
    before = engine.model.forward_tokens
    engine.generate([prompt], dataclasses.replace(SHORT, max_tokens=1), draft_tokens)
    return engine.model.forward_tokens - before


@pytest.mark.parametrize("draft_tokens", [0, 3])
def test_a_prompt_is_found_up_to_its_last_border(draft_tokens: int) -> None:
    engine = make()
    assert ask(engine, LONG, draft_tokens)[1] == 0
    assert ask(engine, LONG, draft_tokens)[1] == 16
    assert computed(engine, LONG, draft_tokens) == 2
    assert ask(engine, [*LONG[:16], 7], draft_tokens)[1] == 16
    assert ask(engine, LONG[:16], draft_tokens)[1] == 0  # a token must be left to feed
    assert ask(engine, [9, *LONG[1:]], draft_tokens)[1] == 0
    assert engine.statistics.prefix_hit_tokens == 48
    assert engine.statistics.prefix_query_tokens == 4 * 18 + 17 + 16


@pytest.mark.parametrize("draft_tokens", [0, 2, 5])
def test_an_answer_is_found_as_part_of_the_next_prompt(draft_tokens: int) -> None:
    engine, sampling = make(), dataclasses.replace(SHORT, max_tokens=15)
    answer, _ = ask(engine, LONG, draft_tokens, sampling)
    assert len(answer) == 15
    assert ask(engine, [*LONG, *answer, 5, 6], draft_tokens)[1] == 32
    assert engine.statistics.pages_remembered >= 8


def test_a_block_that_goes_on_from_a_prefix_remembers_true_states() -> None:
    """The entry of the last position is made anew from the token that comes next now."""
    engine = make()
    ask(engine, LONG, 3)
    for prompt in ([*LONG[:16], 7, 8, 9], [*LONG[:16], 10, 4]):
        request = engine.submit(prompt, SHORT, 3)
        while len(request.tokens) < 3:
            engine.step()
        assert request.usage.cached_tokens == 16
        held = engine._scheduler.cache._pool.held[0]
        ids = request.ids
        with torch.inference_mode():
            engine._scheduler._drafter._catch_up(0, [request])
            hidden, _ = engine.model.hidden(torch.tensor([ids[:-1]]), states=engine.model.new_states(1))
        entries = engine.model.pages.of(held, len(ids) - 1)
        assert torch.equal(entries, torch.cat([hidden[0], torch.tensor(ids[1:])[:, None].float()], 1))
        engine.cancel(request)


def test_who_drafts_needs_what_the_block_has_followed() -> None:
    engine = make()
    ask(engine, LONG)
    assert ask(engine, LONG, 3)[1] == 0
    assert ask(engine, LONG, 3)[1] == 16
    assert ask(engine, LONG)[1] == 16  # the other way round all is there


def test_a_long_prompt_is_remembered_at_the_ends_of_its_pieces_too() -> None:
    engine = make(prefill_tokens=8)
    ask(engine, LONG)
    assert ask(engine, [*LONG[:9], 3, 3])[1] == 8
    assert ask(engine, [*LONG[:13], 3, 3])[1] == 8


def test_what_was_used_last_stays_within_the_budget() -> None:
    engine = make(prefix_cache=4 * STATE)  # of every prompt and every answer, one state
    prompts = [[first, *LONG[1:]] for first in (3, 4, 5)]
    ask(engine, prompts[0])
    ask(engine, prompts[1])
    assert ask(engine, prompts[0])[1] == 16
    ask(engine, prompts[2])
    assert ask(engine, prompts[0])[1] == 16
    assert ask(engine, prompts[1])[1] == 0


def test_who_cannot_remember_says_so() -> None:
    engine = make(prefix_cache=STATE - 1)
    assert engine.statistics.prefix_reuse == "on"
    ask(engine, LONG)
    assert ask(engine, LONG)[1] == 0
    assert engine.statistics.prefix_reuse == "off: the states of one prefix take 64 bytes, and the budget is 63"
    assert make(prefix_cache=False).statistics.prefix_reuse == "off"


def test_prefixes_give_way_to_rows() -> None:
    engine = make(cache_tokens=24)
    for first in (3, 4, 5, 6):
        ask(engine, [first, *LONG[1:]])
    found = engine.statistics
    assert found.preemptions == 0
    assert found.pages_remembered <= 6
    assert ask(engine, [6, *LONG[1:]])[1] == 16


def test_another_model_is_not_answered_from_memory() -> None:
    """Weights that have changed since, as in learning, make everything remembered wrong."""
    engine = make()
    ask(engine, LONG)
    with torch.no_grad():
        engine.model.embedding.mul_(0.5)
    (answer,) = engine.generate([LONG], SHORT)
    assert answer.cached_tokens == 0
    assert engine.generate([LONG], SHORT)[0].cached_tokens == 16
