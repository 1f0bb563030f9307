"""The engine on a GPU: recorded decode steps beside single calls and beside transformers; part of `gpu`.

serve-gate-K       in FP32, with K guesses of the prediction block: greedy and seeded answers are the same with recorded
                   steps, with single calls, and on the CPU
serve-MODEL-rowsB  a step of B rows in BF16 after 128 tokens, and one of transformers' generate after a single one; the
                   ceiling is the time that a step's bytes take at the rate of a copy
"""

import tempfile
from argparse import Namespace
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.case import Case, Disagreement, Line, NotHere
from benchmarks.gpu_limits import copy_rate
from benchmarks.models import build, decoding_bytes, parameters, write
from benchmarks.pairing import OURS, Side, in_turns, plain, short
from benchmarks.peers import TRANSFORMERS, open_transformers
from seqloom.serve.captured import DecodeStep
from seqloom.serve.config import Sampling
from seqloom.serve.engine import Engine
from seqloom.studies.cache_budget import Mute
from seqloom.systems.hybrid_lm.config import AttentionConfig, HybridConfig, MambaConfig, MlpConfig, MoeConfig, MtpConfig
from seqloom.systems.hybrid_lm.model import HybridLM

ROWS, PROMPT, STEPS = (1, 8, 32), 128, 32
SINGLE_CALLS = "single_calls"
GATED = HybridConfig(
    pattern="ME*-M*",
    vocab_size=512,
    width=96,
    mamba=MambaConfig(heads=8, head_width=16, state_width=32, groups=2, chunk=32),
    attention=AttentionConfig(heads=4, kv_heads=2, head_width=32),
    mlp=MlpConfig(hidden_width=128),
    moe=MoeConfig(experts=8, top_k=2, expert_width=64, shared_width=64),
    mtp=MtpConfig(),
)
"""Every kind of layer."""


def cases(models: Mapping[str, HybridConfig]) -> list[Case]:
    return [
        *(Case(f"serve-gate-{guesses}", partial(gate, guesses)) for guesses in (0, 3)),
        *(
            Case(f"serve-{name}-rows{rows}", partial(rows_at, name, config, rows))
            for name, config in models.items()
            for rows in ROWS
        ),
    ]


def single_calls(engine: Engine) -> Engine:
    """The same engine, which records nothing."""
    scheduler = engine._scheduler
    scheduler.decode = DecodeStep(engine.model, scheduler.cache, engine.max_rows, None)
    return engine


def gate(guesses: int, options: Namespace) -> Line:
    before = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = "ieee"
    try:
        model = build(GATED, "fp32").eval()
        answers = {"cpu": answered(engine_of(model, 8), guesses)}
        model.to("cuda")
        recorded = engine_of(model, 8)
        answers |= {
            OURS: answered(recorded, guesses),
            SINGLE_CALLS: answered(single_calls(engine_of(model, 8)), guesses),
        }
        state = recorded.statistics.graphs
    finally:
        torch.backends.cuda.matmul.fp32_precision = before
    if not state.startswith("on"):
        raise Disagreement(f"steps were not recorded: {state}")
    return {"format": "fp32", "gate": same(answers), "graphs": state}


def engine_of(model: HybridLM, rows: int) -> Engine:
    return Engine((model, Mute(model.vocab_size)), rows, page_tokens=64, cache_tokens=rows * 2048)


def answered(engine: Engine, guesses: int) -> list[list[int]]:
    """Answers of different lengths, so that rows come and go: greedy ones, drawn ones, and some that are filtered."""
    draw = torch.Generator().manual_seed(3)
    prompts = [torch.randint(3, GATED.vocab_size, (7 + 19 * n,), generator=draw).tolist() for n in range(12)]
    greedy = Sampling(temperature=0, max_tokens=24, ignore_eos=True)
    ways = [greedy, replace(greedy, temperature=0.8), replace(greedy, temperature=0.9, top_k=40, top_p=0.9)]
    settings = [replace(ways[n % 3], seed=n, max_tokens=8 + 3 * n) for n in range(len(prompts))]
    return [answer.token_ids for answer in engine.generate(prompts, settings, draft_tokens=guesses)]


def same(answers: Mapping[str, list[list[int]]]) -> Line:
    """How many answers are equal everywhere.

    Raises:
        Disagreement: one is not.
    """
    for name, found in answers.items():
        for number, (one, other) in enumerate(zip(answers[OURS], found, strict=True)):
            if one != other:
                place = next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), len(other))
                raise Disagreement(f"answer {number} differs from that of {name} at token {place} of {len(one)}")
    return {"equal_answers": len(answers[OURS])}


def rows_at(name: str, config: HybridConfig, rows: int, options: Namespace) -> Line:
    model, theirs = opened(name, config)
    recorded = engine_of(model, rows)
    sides = {OURS: stepping(recorded, rows), SINGLE_CALLS: stepping(single_calls(engine_of(model, rows)), rows)}
    line: Line = {"parameters": parameters(config), "rows": rows, "context": PROMPT, "format": "bf16"}
    line["graphs"] = recorded.statistics.graphs
    if not isinstance(theirs, str):
        sides[TRANSFORMERS] = generating(theirs, rows)
        try:
            sides[TRANSFORMERS].run(None)
        except Exception as error:  # theirs, which is no reason not to measure ours
            theirs = " ".join(str(error).split())[:200] or type(error).__name__
            del sides[TRANSFORMERS]
    if isinstance(theirs, str):
        line["skipped"] = {TRANSFORMERS: theirs}
    line |= in_turns(sides, options.repeats, STEPS)
    medians = {name: seconds[1] for name, seconds in line["seconds"].items()}
    least = decoding_bytes(config, "bf16", rows, PROMPT) / copy_rate()
    return line | {
        "tokens_per_second": {name: short(rows / seconds) for name, seconds in medians.items()},
        "ceiling_seconds": short(least),
        "share_of_ceiling": {name: short(least / seconds) for name, seconds in medians.items()},
    }


@lru_cache(maxsize=1)
def opened(name: str, config: HybridConfig) -> tuple[HybridLM, Any]:
    """Ours and transformers' model of one folder, or why there is none of theirs.

    Args:
        name: of the model, since few of them are kept.
    """
    from seqloom import load

    with tempfile.TemporaryDirectory() as room:
        folder = write(config, "bf16", Path(room))
        model = load(folder).to("cuda").eval()
        try:
            return model, open_transformers(folder, "bf16").to("cuda").eval()
        except (NotHere, ImportError) as reason:
            return model, str(reason)


def stepping(engine: Engine, rows: int) -> Side:
    """Rows that answer on and on; a turn gives each of them some more tokens."""
    draw = torch.Generator().manual_seed(1)
    endless = Sampling(temperature=0, max_tokens=1900, ignore_eos=True)
    prompts = torch.randint(3, engine.model.vocab_size, (rows, PROMPT), generator=draw).tolist()
    waiting = {engine.submit(prompt, endless) for prompt in prompts}
    while waiting:
        waiting -= {request for request in engine.step() if request.fresh.token_ids}

    def run() -> None:
        for _ in range(STEPS):
            engine.step()

    return plain(run)


def generating(theirs: Any, rows: int) -> Side:
    first = torch.full((rows, 1), 5, device="cuda")

    def run() -> None:
        with torch.inference_mode():
            theirs.generate(first, max_new_tokens=STEPS, min_new_tokens=STEPS, do_sample=False)
        torch.cuda.synchronize()

    return plain(run)
