"""The gate of the engine: an answer is the same to the last bit of its log-probabilities, whoever stands beside it and
however it was computed.

All prompts are answered one by one first, each read at once, without remembered prefixes and without guesses. Then they
are answered again in batches, read in pieces, with prefixes that are found, not found and evicted, with guesses of
every length and source, and with so little room that rows are preempted and computed again. Requests then come at
random moments in a random order, and some are given up half way.
"""

import random
from dataclasses import replace
from typing import Any, NamedTuple

import pytest

from seqloom.nn.state_formats import StateFormats
from seqloom.numerics.precision import PrecisionConfig, apply_precision
from seqloom.ops.native.build import why_not
from seqloom.serve import scheduler
from seqloom.serve.config import Sampling
from seqloom.serve.engine import Engine
from seqloom.systems.hybrid_lm.model import HybridLM
from soak import SOAKING, soak
from tiny_models import Nothing, make

PAGE = 16
PROMPTS, SHARE = soak(100, 10_000), soak(5, 1)
"""All are answered alone, and each way takes every fifth of them here, or all."""
FEW = soak(16, 1000)
"""Prompts of the models that only show that nothing depends on the format."""

ALONE: dict[str, Any] = {"max_rows": 1, "prefill_tokens": 512, "prefix_cache": False}
WAYS: dict[str, tuple[dict[str, Any], str | int]] = {
    "batch of 8, pieces of 7": ({"max_rows": 8, "prefill_tokens": 7, "prefix_cache": False}, 0),
    "batch of 32, prefixes": ({"max_rows": 32, "prefill_tokens": 64}, 0),
    "guesses of the block": ({"max_rows": 8, "prefill_tokens": 64}, "0 to 5"),
    "guesses from n-grams": ({"max_rows": 8, "prefill_tokens": 64, "drafter": "ngram"}, "0 to 5"),
    "little room": ({"max_rows": 8, "prefill_tokens": 32, "cache_tokens": 8 * PAGE}, "0 to 5"),
    "chosen by speed": ({"max_rows": 32, "prefill_tokens": 16}, "auto"),
}


class Question(NamedTuple):
    prompt: list[int]
    sampling: Sampling


class Answer(NamedTuple):
    tokens: list[int]
    logprobs: list[float]
    likeliest: list[Any]


def questions(count: int) -> list[Question]:
    """Prompts that share beginnings of all lengths; some are equal, or the beginning of another."""
    draw = random.Random(8)
    stems = [[draw.randrange(3, 256) for _ in range(draw.choice((1, PAGE, 2 * PAGE, 47)))] for _ in range(8)]
    ways: list[dict[str, Any]] = [
        {"temperature": 0.0},
        {"temperature": 0.9, "top_p": 0.95, "ignore_eos": True},
        {"temperature": 1.2, "top_k": 30, "frequency_penalty": 0.4, "repetition_penalty": 1.1},
        {"temperature": 1.0, "min_p": 0.01, "logit_bias": ((7, 9.0), (8, 8.0))},  # 7s and 8s: easy to guess
    ]
    found: list[Question] = []
    for number in range(count):
        prompt = draw.choice(stems) + [draw.randrange(3, 256) for _ in range(draw.choice((0, 1, 5, PAGE, 24)))]
        if number % 5 == 4:  # n-grams that come again
            prompt = (prompt[-6:] * 6)[: draw.randrange(8, 36)]
        most = draw.choice((1, 2, 3, 5, 40))
        found.append(Question(prompt, Sampling(max_tokens=most, seed=number, logprobs=1, **ways[number % 4])))
    return found


def one_by_one(model: HybridLM, asked: list[Question]) -> list[Answer]:
    engine = Engine((model, Nothing()), **ALONE)
    return [wait(engine, {engine.submit(*question): 0}, [Answer([], [], [])])[0] for question in asked]


def together(engine: Engine, asked: list[Question], draft: str | int, given_up: float = 0.0) -> list[Answer]:
    """All answers to questions that come at random moments in a random order.

    Args:
        given_up: how many strangers come for each question, to be cancelled somewhere.
    """
    draw = random.Random(1)
    order = random.Random(2).sample(range(len(asked)), len(asked))
    found = [Answer([], [], []) for _ in asked]
    under_way: dict[Any, int] = {}
    strangers: list[Any] = []
    while order or under_way:
        while order and draw.random() < 0.7:
            index = order.pop()
            guesses = draw.randrange(6) if draft == "0 to 5" else draft
            under_way[engine.submit(*asked[index], draft_tokens=guesses)] = index
            if draw.random() < given_up:
                prompt = asked[draw.randrange(len(asked))].prompt[: draw.randrange(1, 40)]
                strangers.append(engine.submit(prompt, Sampling(max_tokens=20), draft_tokens=guesses))
        if strangers and draw.random() < 0.3:
            engine.cancel(strangers.pop(draw.randrange(len(strangers))))
        wait(engine, under_way, found, turns=1)
    for stranger in strangers:
        engine.cancel(stranger)
    return found


def wait(engine: Engine, under_way: dict[Any, int], found: list[Answer], turns: int | None = None) -> list[Answer]:
    """Take some turns, or as many as it takes, and note what came."""
    while under_way and turns != 0:
        for request in engine.step():
            if request not in under_way:
                continue
            answer, fresh = found[under_way[request]], request.fresh
            answer.tokens.extend(fresh.token_ids)
            answer.logprobs.extend(choice.logprob for choice in fresh.logprobs or ())
            answer.likeliest.extend(choice.top for choice in fresh.logprobs or ())
            if request.finish_reason is not None:
                assert request.finish_reason != "error"
                del under_way[request]
        turns = None if turns is None else turns - 1
    return found


@pytest.fixture(scope="module")
def model() -> HybridLM:
    return make("mtp", pattern="ME*-")


@pytest.fixture(scope="module")
def asked() -> list[Question]:
    return questions(PROMPTS)


@pytest.fixture(scope="module")
def alone(model: HybridLM, asked: list[Question]) -> list[Answer]:
    answers = one_by_one(model, asked)
    for question, answer in zip(asked, answers, strict=True):
        assert 0 < len(answer.tokens) == len(answer.logprobs) <= question.sampling.max_tokens
    assert len({tuple(answer.tokens) for answer in answers}) > PROMPTS // 3  # it is a lively model
    return answers


def assert_same(there: list[Answer], alone: list[Answer]) -> None:
    off = [index for index, (one, other) in enumerate(zip(there, alone, strict=True)) if one != other]
    assert not off, f"{len(off)} of {len(alone)}, the first is {off[0]}: {there[off[0]]} instead of {alone[off[0]]}"


@pytest.mark.full
@pytest.mark.timeout(soak(120, 7200))
@pytest.mark.parametrize("way", WAYS)
def test_every_way_gives_the_same_bits(way: str, model: HybridLM, asked: list[Question], alone: list[Answer]) -> None:
    settings, draft = WAYS[way]
    chosen = slice(list(WAYS).index(way) % SHARE, None, SHARE)
    engine = Engine((model, Nothing()), page_tokens=PAGE, **settings)
    assert_same(together(engine, asked[chosen], draft, given_up=0.2), alone[chosen])
    told = engine.statistics
    assert told.rows_running == told.rows_waiting == 0
    assert told.pages_free == told.pages  # none is held by a row
    if settings.get("prefix_cache", True) and way != "little room":  # where nothing is remembered for long
        assert 0 < told.prefix_hit_tokens < told.prefix_query_tokens
    if way == "little room":
        assert told.preemptions > 0
    if draft == "0 to 5":
        assert 0 < sum(told.accepted) < sum(told.drafted)


@pytest.mark.full
@pytest.mark.timeout(soak(120, 7200))
def test_so_it_is_where_nobody_asks_for_logprobs(
    model: HybridLM, asked: list[Question], alone: list[Answer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where several steps are one call, and all tokens are chosen in it."""
    monkeypatch.setattr(scheduler, "_CALL_SECONDS", 1e9)
    engine = Engine((model, Nothing()), 4, page_tokens=PAGE, prefill_tokens=64)
    free = [Question(each.prompt, replace(each.sampling, logprobs=None)) for each in asked]
    found = together(engine, free, 0, given_up=0.2) + together(engine, free[:8], "0 to 5")
    assert [each.tokens for each in found] == [each.tokens for each in alone + alone[:8]]
    request = engine.submit([5] * 40, Sampling(temperature=0, max_tokens=40, ignore_eos=True))
    taken = []
    while request.finish_reason is None:
        engine.step()
        taken.append(len(request.fresh.token_ids))
    assert sum(taken) == 40
    if why_not() is None:
        assert max(taken) == 8


@pytest.mark.full
@pytest.mark.timeout(soak(120, 7200))
@pytest.mark.parametrize(
    ("variant", "precision", "formats"),
    [
        ("dense", "bf16", StateFormats()),
        ("mtp", "bf16", StateFormats(keys_values="fp8", ssm="fp16_sr")),
        ("moe", "fp32", StateFormats(ssm="int8_sr")),
    ],
    ids=["bf16", "bf16, fp8 keys and values, fp16_sr states", "fp32, int8_sr states"],
)
def test_so_it_is_in_few_bits(variant: str, precision: Any, formats: StateFormats) -> None:
    model = make(variant)
    apply_precision(model, PrecisionConfig(activations=precision))
    model.keep_states(formats)
    asked = questions(FEW)
    alone = one_by_one(model, asked)
    engine = Engine((model, Nothing()), 8, page_tokens=PAGE, prefill_tokens=16, cache_tokens=15 * PAGE)
    assert_same(together(engine, asked, "0 to 5"), alone)


@pytest.mark.full
@pytest.mark.parametrize("weights", ["bf16", "int8", "fp8", "nvfp4"] if SOAKING else ["int8", "nvfp4"])
def test_so_it_is_with_packed_weights(weights: Any) -> None:
    asked = questions(FEW)
    engine = Engine((make("mtp"), Nothing()), 1, weights=weights, prefix_cache=False)
    alone = [wait(engine, {engine.submit(*question): 0}, [Answer([], [], [])])[0] for question in asked]
    engine = Engine((make("mtp"), Nothing()), 8, weights=weights, page_tokens=PAGE, prefill_tokens=16)
    assert_same(together(engine, asked, "0 to 5"), alone)


def test_a_draw_from_another_seed_is_another_text(model: HybridLM) -> None:
    """Or else equal answers would say nothing."""
    (first, second) = [
        one_by_one(model, [Question(each.prompt, replace(each.sampling, seed=seed)) for each in questions(8)])
        for seed in (1, 2)
    ]
    assert first[0] == second[0]  # the likeliest token each time
    assert sum(one.tokens != other.tokens for one, other in zip(first, second, strict=True)) > 3
