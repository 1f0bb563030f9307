"""What lm-eval is told about a model; scores are compared with one plain pass over each row."""

import importlib
import importlib.util
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from serve.toy_model import BOS, ToyModel, ToyTokenizer

from seqloom.serve.engine import Engine


@pytest.fixture
def harness(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module on the real lm-eval where it is installed, else on stand-ins for the names it imports."""
    if importlib.util.find_spec("lm_eval") is None:
        for name, content in {
            "lm_eval": {"simple_evaluate": None},
            "lm_eval.api": {},
            "lm_eval.api.model": {"LM": object},
            "lm_eval.tasks": {"TaskManager": lambda: SimpleNamespace(task_index={}, all_tasks=["hellaswag"])},
        }.items():
            module = ModuleType(name)
            vars(module).update(content)
            monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.delitem(sys.modules, "seqloom.systems.hybrid_lm.harness", raising=False)
    return importlib.import_module("seqloom.systems.hybrid_lm.harness")


@pytest.fixture
def engine() -> Engine:
    return Engine((ToyModel().eval(), ToyTokenizer()), max_rows=2)


def request(*arguments: Any) -> SimpleNamespace:
    return SimpleNamespace(args=arguments)


@torch.inference_mode()
def plain(engine: Engine, context: str, continuation: str) -> tuple[float, bool]:
    before = [BOS, *engine.tokenizer.encode(context)]
    row = torch.tensor([before + engine.tokenizer.encode(continuation)])
    hidden, _ = engine.model.hidden(row, states=engine.model.new_states(1))
    nats = engine.model.head(hidden).log_softmax(-1)[0]
    places = range(len(before), row.shape[1])
    score = sum(float(nats[place - 1, row[0, place]]) for place in places)
    return score, all(int(nats[place - 1].argmax()) == int(row[0, place]) for place in places)


@pytest.mark.parametrize("most_logits", [2**26, 60, 1])
def test_scores_equal_a_plain_pass(
    harness: Any, engine: Engine, most_logits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(harness, "_LOGITS", most_logits)
    likely = engine.generate(["cab"], harness.Sampling(max_tokens=3, temperature=0))[0].text
    pairs = [("abc", "de"), ("", "a"), ("cab", likely), ("abcabc", "a"), ("ce", "dced")]
    scores = harness.Harness(engine).loglikelihood([request(*pair) for pair in pairs])
    for (nats, greedy), pair in zip(scores, pairs, strict=True):
        expected, expected_greedy = plain(engine, *pair)
        assert nats == pytest.approx(expected, abs=1e-4)
        assert greedy == expected_greedy
    assert [greedy for _, greedy in scores].count(True) >= 1


def test_a_document_is_scored_from_its_first_token(harness: Any, engine: Engine) -> None:
    (nats,) = harness.Harness(engine).loglikelihood_rolling([request("abcde")])
    assert nats == pytest.approx(plain(engine, "", "abcde")[0], abs=1e-4)


def test_generation_is_greedy_and_ends_at_a_stop_string(harness: Any, engine: Engine) -> None:
    free, stopped = harness.Harness(engine).generate_until(
        [request("abc", {"max_gen_toks": 8}), request("abc", {"max_gen_toks": 8, "until": ["e"], "do_sample": False})]
    )
    assert "e" in free
    assert stopped == free[: free.index("e")]


def test_an_unknown_task_names_its_neighbours(harness: Any, engine: Engine) -> None:
    with pytest.raises(harness.ConfigError, match="unknown task 'helaswag'; did you mean: hellaswag"):
        harness.run_tasks(engine, ["helaswag"])
