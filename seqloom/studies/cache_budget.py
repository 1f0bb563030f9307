"""How many sequences fit into a budget of memory, and what a machine writes when so many stand in one batch.

    rows = budget / (L kv + state)        L tokens of a prompt and its answer, kv of a token, state of a row

Both models answer the same requests through the engine, each with as many rows as its budget holds; the others wait.
Paper: Nemotron-H and Nemotron Nano 2, sections on throughput.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from seqloom.studies.decoding import WIDE, state_bytes
from seqloom.systems.hybrid_lm.budget import state_budget
from seqloom.systems.hybrid_lm.config import HybridConfig

_PAGE = 64
"""Tokens in a page of the engine's memory."""


@dataclass(frozen=True, kw_only=True)
class Load:
    """What everybody asks for: so many tokens read, so many written."""

    name: str
    prompt: int
    answer: int

    @property
    def tokens(self) -> int:
        return self.prompt + self.answer


@dataclass(frozen=True, kw_only=True)
class Served:
    """One model under one load.

    Attributes:
        rows: sequences that fit into the budget.
        tokens_per_second: written, over all rows.
        seconds: until the last answer.
    """

    model: str
    load: str
    rows: int
    tokens_per_second: float
    seconds: float


def row_bytes(config: HybridConfig, tokens: int) -> int:
    """Memory of one sequence of so many tokens."""
    return state_budget(config).kv_bytes_per_token // 2 * WIDE * tokens + state_bytes(config)


def rows_that_fit(config: HybridConfig, tokens: int, budget: int, most: int) -> int:
    return min(most, budget // row_bytes(config, tokens))


def serve(
    models: Mapping[str, HybridConfig], loads: Sequence[Load], budget: int, requests: int
) -> list[dict[str, Any]]:
    """Every model under every load, as plain data of `Served`; an engine for each, warmed by a short answer.

    Args:
        budget: bytes of keys, values and states.
        requests: answers of each load.
    """
    import torch

    found = []
    for load in loads:
        for name, config in models.items():
            torch.manual_seed(0)
            model = config.build().eval()
            rows = rows_that_fit(config, load.tokens, budget, requests)
            found.append({"model": name, "load": load.name, "rows": rows, **_serve(model, load, rows, requests)})
    return found


def _serve(model: Any, load: Load, rows: int, requests: int) -> dict[str, float]:
    import torch

    from seqloom.serve.config import Sampling
    from seqloom.serve.engine import Engine

    draw = torch.Generator().manual_seed(1)
    prompts = torch.randint(3, model.vocab_size, (requests, load.prompt), generator=draw).tolist()
    pages = rows * (1 + -(-load.tokens // _PAGE))  # a row is admitted while every other can take one more page
    source = (model, Mute(model.vocab_size))
    engine = Engine(source, rows, cache_tokens=pages * _PAGE, page_tokens=_PAGE, prefix_cache=False)
    engine.generate(prompts[:1], Sampling(temperature=0, max_tokens=2))
    start = time.perf_counter()
    engine.generate(prompts, Sampling(temperature=0, max_tokens=load.answer))
    seconds = time.perf_counter() - start
    return {"tokens_per_second": float(f"{requests * load.answer / seconds:.4g}"), "seconds": float(f"{seconds:.4g}")}


class Mute:
    """A tokenizer for token ids that nobody reads and none of which ends a text."""

    bos, eos = None, -1

    def __init__(self, size: int) -> None:
        self.size = size

    def encode(self, text: str, *, specials: bool = False) -> list[int]:
        return []

    def decode(self, ids: Sequence[int]) -> str:
        return ""
