"""lm-eval as a client of a running server: the scores and texts that it gets are those of the model itself."""

import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from serve.http.front import Serving, write_tokenizer

from seqloom.cli.dialogue import ask_messages
from seqloom.serve.config import Sampling
from seqloom.serve.engine import Engine
from seqloom.serve.http.app import application
from seqloom.serve.http.engine_process import EngineProcess
from seqloom.serve.http.metrics import Metrics
from seqloom.serve.http.model import ServedModel
from seqloom.serve.http.prepared import Defaults
from seqloom.systems.hybrid_lm.server import ServerConfig, opening
from tiny_models import make

pytestmark = [
    pytest.mark.full,
    pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="needs lm-eval"),
]

QUESTIONS = [
    {"question": "def f(x):\n    return", "choices": [" x", " f(x) + 1"]},
    {"question": "It is a truth", "choices": [" that", " universally acknowledged", "\nthat 日本"]},
    {"question": "import", "choices": [" os", " it is"]},
]
CHOICES = {"output_type": "multiple_choice", "doc_to_choice": "choices", "doc_to_target": 0}
TEXTS = {
    "output_type": "generate_until",
    "doc_to_target": "",
    "generation_kwargs": {"until": ["e"], "max_gen_toks": 48, "do_sample": False},
    "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = write_tokenizer(tmp_path_factory.mktemp("scored") / "tiny")
    make("mtp", vocab_size=400).write_folder(found)
    return found


@pytest.fixture(scope="module")
def engine(folder: Path) -> Engine:
    return Engine(folder, max_rows=2)


@pytest.fixture(scope="module")
def address(folder: Path) -> Iterator[str]:
    process = EngineProcess(opening(folder, ServerConfig(max_rows=2, cache_tokens=2048, threads=1)), 16, Metrics())
    defaults = Defaults(draft_tokens="auto", answer_tokens=32, thinking_tokens=6)
    server = Serving(application(ServedModel(folder, "tiny"), process, defaults), process).start()
    yield server.address
    server.stop()


def asked(model: str, *configs: dict[str, Any], **settings: Any) -> list[list[tuple[Any, Any]]]:
    """(arguments, answers) of every question, for each task."""
    import lm_eval
    from datasets import Dataset
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.tasks import TaskManager

    data = {"test": Dataset.from_list(QUESTIONS)}
    shared = {"test_split": "test", "doc_to_text": "{{question}}", "custom_dataset": lambda **_: data}
    tasks = [ConfigurableTask(config={"task": str(number), **shared, **each}) for number, each in enumerate(configs)]
    manager = TaskManager(include_defaults=False)  # reading the thousands of tasks that it knows takes half a minute
    found = lm_eval.simple_evaluate(model, tasks=tasks, task_manager=manager, bootstrap_iters=0, **settings)["samples"]
    return [[(sample["arguments"], sample["resps"]) for sample in found[str(number)]] for number in range(len(tasks))]


def test_completions_score_and_write_as_the_engine_does(folder: Path, engine: Engine, address: str) -> None:
    from seqloom.systems.hybrid_lm.harness import Harness

    arguments = {
        "model": "tiny", "base_url": f"{address}/v1/completions", "tokenizer": str(folder), "add_bos_token": True,
        "num_concurrent": 2,
    }  # fmt: skip
    scored, written = asked("local-completions", CHOICES, TEXTS, model_args=arguments)
    ours = Harness(engine)
    for pairs, answers in scored:
        scores = ours.loglikelihood([SimpleNamespace(args=pair) for pair in pairs])
        for ((nats, greedy),), (expected, expected_greedy) in zip(answers, scores, strict=True):
            assert nats == pytest.approx(expected, abs=1e-4)
            assert greedy == expected_greedy
    assert sum(len(answers) for _, answers in scored) == 7
    texts = [text for _, ((text,),) in written]
    assert texts == ours.generate_until([SimpleNamespace(args=request) for (request,), _ in written])
    assert any(texts)


def test_chats_write_as_the_engine_does(engine: Engine, address: str) -> None:
    arguments = {"model": "tiny", "base_url": f"{address}/v1/chat/completions"}
    (found,) = asked("local-chat-completions", TEXTS, model_args=arguments, apply_chat_template=True)
    sampling = Sampling(max_tokens=48, temperature=0, stop=("e",), thinking_tokens=6)
    for ((prompt, _),), ((text,),) in found:
        wanted = ask_messages(engine.tokenizer, json.loads(prompt[0]), sampling)
        request = engine.submit(wanted.prompt, wanted.sampling, 0, wanted.marks)
        while request.finish_reason is None:
            engine.step()
        assert text == request.completion().text.lstrip("\n")
    assert any(text for _, ((text,),) in found)
