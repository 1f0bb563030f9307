"""Recorded decode steps without a GPU: a recorder that repeats the step over the same buffers shows that they give the
bits of plain calls, and tensors without values show that nothing in a step asks for one."""

import dataclasses
from contextvars import ContextVar
from typing import Any

import pytest
import torch
from serve.recorder import Repeats
from serve.test_invariance import PAGE, Answer, Question, one_by_one, questions, together
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from seqloom.nn.state_formats import StateFormats
from seqloom.ops.token_choice import Kind
from seqloom.serve import captured
from seqloom.serve.captured import DecodeStep
from seqloom.serve.config import Sampling
from seqloom.serve.engine import Engine
from seqloom.systems.hybrid_lm.model import HybridLM
from tiny_models import Nothing, make

ROWS = 8


def engine_of(model: HybridLM, recorder: Repeats, **settings: Any) -> Engine:
    engine = Engine((model, Nothing()), ROWS, page_tokens=PAGE, **settings)
    scheduler = engine._scheduler
    scheduler.decode = DecodeStep(model, scheduler.cache, ROWS, recorder)
    return engine


@pytest.fixture(scope="module")
def model() -> HybridLM:
    return make("mtp", pattern="ME*-")


@pytest.fixture(scope="module")
def asked() -> list[Question]:
    return questions(20)


@pytest.fixture(scope="module")
def alone(model: HybridLM, asked: list[Question]) -> list[Answer]:
    return one_by_one(model, asked)


@pytest.mark.parametrize(
    ("draft", "settings"),
    [(0, {}), ("0 to 5", {"prefill_tokens": 16}), ("0 to 5", {"drafter": "ngram", "cache_tokens": 8 * PAGE})],
    ids=["plain", "guesses", "little room"],
)
def test_repeated_steps_give_the_bits_of_single_calls(
    draft: Any, settings: dict[str, Any], model: HybridLM, asked: list[Question], alone: list[Answer]
) -> None:
    """Rows join, leave and are preempted, in numbers that are mostly no power of two, and are drawn on both sides."""
    recorder = Repeats()
    engine = engine_of(model, recorder, **settings)
    assert together(engine, asked, draft, given_up=0.2) == alone
    told = engine.statistics
    assert told.graphs == f"on: {recorder.recorded} recorded"
    assert recorder.recorded < recorder.replayed / 2
    assert bool(told.preemptions) == ("cache_tokens" in settings)
    assert told.pages_free == told.pages
    free = [Question(each.prompt, dataclasses.replace(each.sampling, logprobs=None)) for each in asked]
    found = together(engine, free, draft)
    assert [answer.tokens for answer in found] == [answer.tokens for answer in alone]
    assert {shape[0] for shape in engine._scheduler.decode._recorded} >= {"greedy", "filtered"}


def test_other_weights_are_recorded_anew() -> None:
    model = make("dense")
    engine = engine_of(model, Repeats())
    engine.generate([[5, 6]], Sampling(max_tokens=4))
    assert engine.statistics.graphs == "on: 1 recorded"
    model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone())
    engine.submit([5, 6], Sampling(max_tokens=4))
    assert engine.statistics.graphs == "on: 0 recorded"


def test_what_cannot_be_recorded_runs_as_it_is_and_says_why(
    model: HybridLM, asked: list[Question], alone: list[Answer]
) -> None:
    engine = engine_of(model, Repeats(failing=3))
    assert together(engine, asked, "0 to 5") == alone
    assert engine.statistics.graphs == "off: called a synchronizing CUDA operation"
    assert Engine((model, Nothing())).statistics.graphs == "off: nothing is recorded on a CPU"


class NoWordToTheHost(TorchDispatchMode):
    """Refuses every operation with a tensor that is not on the device."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for leaf in tree_leaves((args, kwargs, result)):
            assert not isinstance(leaf, Tensor) or leaf.is_meta, f"{function} touches the host"
        return result


def step_without_values(model: HybridLM, tokens: int, kind: Kind) -> None:
    """On the device meta, whose tensors have shapes and nothing that could be asked for."""
    model.to("meta")
    cache = model.new_cache(ROWS, 64, PAGE, 16)
    for row, length in enumerate((3, 9, 1)):
        cache.clear(row)
        assert cache.reserve(row, length + 2 * tokens)
        model.remember(torch.zeros(1, length, dtype=torch.int64, device="meta"), cache.states(row, 1, length))
    for _ in range(2):
        states = cache.states(0, 3, tokens, tokens > 1, spare=1)
        step = captured._Recorded(model, states, 4, tokens, kind, captured._Outputs())
        with NoWordToTheHost():
            step.run()
        if tokens > 1:
            cache.keep(0, [1, tokens, 2])
    assert step.outputs[0].shape == (4, tokens, 64)


@torch.inference_mode()
@pytest.mark.parametrize(
    ("tokens", "kind", "formats"),
    [
        (1, "greedy", StateFormats()),
        (1, "race", StateFormats()),
        (4, "filtered", StateFormats()),
        (2, "greedy", StateFormats(ssm="int8_sr", keys_values="fp8")),
    ],
    ids=["greedy", "race", "guesses", "few bits"],
)
def test_a_step_asks_a_gpu_for_nothing(tokens: int, kind: Kind, formats: StateFormats) -> None:
    model = make("mtp", pattern="ME*-")
    model.keep_states(formats)
    step_without_values(model, tokens, kind)


@torch.inference_mode()
@pytest.mark.parametrize(
    ("variant", "place", "value"),
    [
        ("moe", "seqloom.ops.experts._FEW", 0),
        ("dense", "seqloom.ops.kernels._invariant", ContextVar("invariant", default=True)),
    ],
    ids=["experts that are told counts", "attention that is told lengths"],
)
def test_and_it_would_be_noticed(monkeypatch: pytest.MonkeyPatch, variant: str, place: str, value: object) -> None:
    monkeypatch.setattr(place, value)
    with pytest.raises((RuntimeError, AssertionError), match=r"(?i)meta|touches the host"):
        step_without_values(make(variant), 1, "greedy")
