"""The benchmark harness lm-eval on a model of ours: scores of given continuations, and free generation until a stop.

    log p(continuation | context) = Σ_t log p(token_t | tokens before it),   greedy: every token was the most likely one

Rows are read in pieces with the layers' states, so a long document needs no more memory than a short one.
"""

from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from lm_eval import simple_evaluate
from lm_eval.api.model import LM
from lm_eval.tasks import TaskManager

from seqloom.core.errors import ConfigError, DataError
from seqloom.serve.config import Sampling
from seqloom.serve.engine import Engine

_LOGITS = 2**26
"""Most logits held at once; bounds the memory of a piece."""


def run_tasks(engine: Engine, tasks: list[str], limit: int | None = None) -> dict[str, Any]:
    """Measures by task, under the harness's own names.

    Args:
        tasks: names of the harness, or paths of task files (YAML).
        limit: examples per task; None takes all.
    Raises:
        ConfigError: a task is unknown to the harness.
        DataError: the data of a task cannot be had.
    """
    manager = TaskManager()
    for task in tasks:
        if task not in manager.task_index and not Path(task).is_file():
            near = ", ".join(get_close_matches(task, manager.all_tasks, n=3))
            raise ConfigError(f"--tasks: unknown task '{task}'" + (f"; did you mean: {near}?" if near else ""))
    try:
        found = simple_evaluate(Harness(engine), tasks=tasks, limit=limit, task_manager=manager, log_samples=False)
    except OSError as error:
        raise DataError(f"--tasks: the data of {', '.join(tasks)} cannot be loaded: {error}") from error
    assert found is not None, "only further ranks of a distributed evaluation get nothing"
    return dict(found["results"])


class Harness(LM):  # type: ignore[misc]  # lm-eval is optional and untyped
    """What lm-eval asks of a language model, answered by an engine."""

    def __init__(self, engine: Engine) -> None:
        super().__init__()
        self.engine = engine

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Log-probability in nats of each (context, continuation), and whether greedy decoding gives it."""
        rows = []
        for context, continuation in (request.args for request in requests):
            # A space between the two belongs to the continuation: tokens of running text carry their leading space.
            spaces = len(context) - len(context.rstrip())
            context, continuation = context[: len(context) - spaces], context[len(context) - spaces :] + continuation
            before = self._encode(context)
            rows.append((self._encode(context + continuation), len(before)))
        return self._score(rows)

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """Log-probability in nats of whole documents."""
        return [nats for nats, _ in self._score([(self._encode(request.args[0]), 1) for request in requests])]

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """Continuations up to the first of the stop strings of each request."""
        contexts, samplings = [], []
        for context, wishes in (request.args for request in requests):
            until = wishes.get("until") or []
            contexts.append(context)
            samplings.append(
                Sampling(
                    max_tokens=wishes.get("max_gen_toks", 256),
                    temperature=wishes.get("temperature", 0.0) if wishes.get("do_sample") else 0.0,
                    stop=(until,) if isinstance(until, str) else tuple(until),
                    seed=0,
                )
            )
        return [completion.text for completion in self.engine.generate(contexts, samplings)]

    def _encode(self, text: str) -> list[int]:
        beginning = [] if self.engine.tokenizer.bos is None else [self.engine.tokenizer.bos]
        return beginning + self.engine.tokenizer.encode(text)

    def _score(self, rows: list[tuple[list[int], int]]) -> list[tuple[float, bool]]:
        """For each row of tokens: log-probability of those from a place on, and whether each was the most likely."""
        order = sorted(range(len(rows)), key=lambda index: -len(rows[index][0]))
        scores: dict[int, tuple[float, bool]] = {}
        for start in range(0, len(order), self.engine.max_rows):
            chosen = order[start : start + self.engine.max_rows]
            scores.update(zip(chosen, self._score_batch([rows[index] for index in chosen]), strict=True))
        return [scores[index] for index in range(len(rows))]

    @torch.inference_mode()
    def _score_batch(self, rows: list[tuple[list[int], int]]) -> list[tuple[float, bool]]:
        model: Any = self.engine.model  # one with states of its own, beside those of the engine
        device = next(model.parameters()).device
        longest = max(len(tokens) for tokens, _ in rows)
        tokens = torch.tensor([row + [0] * (longest - len(row)) for row, _ in rows], device=device)
        place = torch.arange(longest, device=device)
        first = torch.tensor([first for _, first in rows], device=device)[:, None]
        length = torch.tensor([len(row) for row, _ in rows], device=device)[:, None]
        asked = (place >= first) & (place < length)
        nats, greedy = torch.zeros(len(rows), dtype=torch.float64, device=device), torch.ones_like(first[:, 0]) > 0
        states = model.new_states(len(rows))
        piece = max(1, _LOGITS // (len(rows) * model.vocab_size))
        for start in range(0, longest - 1, piece):
            stop = min(start + piece, longest - 1)
            hidden, _ = model.hidden(tokens[:, start:stop], states=states)
            logits, targets = model.head(hidden), tokens[:, start + 1 : stop + 1, None]
            wanted = asked[:, start + 1 : stop + 1]
            nats += (logits.log_softmax(-1).gather(-1, targets)[..., 0] * wanted).sum(1, dtype=torch.float64)
            greedy &= ((logits.argmax(-1, keepdim=True) == targets)[..., 0] | ~wanted).all(1)
        return list(zip(nats.tolist(), greedy.tolist(), strict=True))
