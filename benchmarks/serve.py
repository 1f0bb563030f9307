"""The engine beside llama.cpp and transformers with the same random weights; what HTTP costs; how contexts cost.

    python -m benchmarks serve --only '150m-bf16-*' --threads 2

SIZE-FORMAT-rowsB: B answers at a time after prompts of 128 tokens, seconds of a step; SIZE-FORMAT-promptT: T tokens
read, seconds until the first token. Ours goes through the engine, the peers are driven without one. llama.cpp opens
a GGUF file of the same weights in the format with about as many bits: BF16, Q8_0 for int8, Q4_0 for nvfp4.
Gate: all logits agree as far as their formats can.
SIZE-contextC: a token after C others, of the hybrid and of an attention-only twin, beside what bytes alone predict.
http-request, http-token: the server in front of an engine without a model, minus the same engine without a server.
The ceiling is the time that memory needs for weights and states, at the fastest read measured in the same run.
"""

import tempfile
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import decode, prefill
from benchmarks.case import Case, Line, NotHere
from benchmarks.ceiling import read_rate
from benchmarks.http import request_cost, token_cost
from benchmarks.llama import FORMATS as LLAMA_FORMATS
from benchmarks.llama import LLAMA, PACKAGE, Llama
from benchmarks.models import SIZES, TOY, build, decoding_bytes, parameters, write
from benchmarks.pairing import OURS, Side, in_turns, plain, short
from benchmarks.peers import TRANSFORMERS, agree_on_logits
from seqloom.systems.hybrid_lm.config import AttentionConfig, HybridConfig, MambaConfig, MlpConfig

FORMATS, ROWS, LENGTHS = ("bf16", "int8", "nvfp4"), (1, 8), (512, 2048, 8192)
CONTEXTS = (1024, 4096, 16384, 65536)
PROMPT, CONTEXT, STEPS, GATE_STEPS, PAGE = 128, 4096, 16, 4, 256
BITS = {"fp32": 32.0, "bf16": 16.0, "int8": 8.5, "nvfp4": 4.5}
"""Of a weight, scales included."""
HYBRIDS = {
    "30m": SIZES["30m"],
    "150m": SIZES["150m"],
    "500m": HybridConfig(
        pattern="M-M-M*-" * 5 + "M-",
        vocab_size=32768,
        width=1280,
        mamba=MambaConfig(heads=40, head_width=64, state_width=128, groups=4),
        attention=AttentionConfig(heads=20, kv_heads=4, head_width=64),
        mlp=MlpConfig(hidden_width=5120),
    ),
    TOY: SIZES[TOY],
}


def cases(options: Namespace) -> list[Case]:
    found = []
    for size in HYBRIDS:
        named = size == TOY
        for format in FORMATS:
            found += [Case(f"{size}-{format}-rows{rows}", partial(rows_at, size, format, rows), named) for rows in ROWS]
            found += [
                Case(f"{size}-{format}-prompt{length}", partial(prompt_of, size, format, length), named)
                for length in LENGTHS
            ]
        found += [
            Case(f"{size}-context{context}", partial(context_of, size, context), named or size != "30m")
            for context in CONTEXTS
        ]
    found += [
        Case(f"http-{name}", partial(_http, cost)) for name, cost in (("request", request_cost), ("token", token_cost))
    ]
    return found


def _http(cost: Callable[[Path, int], Line], options: Namespace) -> Line:
    with tempfile.TemporaryDirectory() as room:
        return cost(Path(room), options.repeats)


# Answers and prompts -----------------------------------------------------------------------------------------------


@torch.inference_mode()
def rows_at(size: str, format: str, rows: int, options: Namespace) -> Line:
    config = HYBRIDS[size]
    tokens = _tokens(config, rows, PROMPT + GATE_STEPS)
    line: Line = {"parameters": parameters(config), "rows": rows, "context": PROMPT}
    with ExitStack() as stack, tempfile.TemporaryDirectory() as room:
        engine = _engine(config, format, Path(room), rows, CONTEXT)
        logits = {OURS: _full_pass(engine, tokens)}
        sides = {OURS: _steps(engine, tokens[:, :PROMPT])}
        if not options.alone:
            if format == "bf16":
                with _maybe(line, TRANSFORMERS):
                    logits[TRANSFORMERS], sides[TRANSFORMERS] = decode.theirs(Path(room, "bf16"), format, tokens)
            with _maybe(line, LLAMA):
                llama = stack.enter_context(_llama(config, format, Path(room), rows, CONTEXT, options.threads))
                logits[LLAMA] = torch.stack(
                    [llama.feed(tokens[:, :PROMPT])]
                    + [llama.feed(tokens[:, place : place + 1]) for place in range(PROMPT, tokens.shape[1])]
                )
                sides[LLAMA] = plain(partial(_greedy, llama, tokens[:, -1:]))
        line |= _gated(logits, format)
        line |= in_turns(sides, options.repeats, STEPS)
    rate, medians = read_rate(), {name: seconds[1] for name, seconds in line["seconds"].items()}
    least = _step_bytes(config, format, rows, PROMPT) / rate
    return line | {
        "tokens_per_second": {name: short(rows / seconds) for name, seconds in medians.items()},
        "ceiling_bytes_per_second": short(rate),
        "share_of_ceiling": {name: short(least / seconds) for name, seconds in medians.items()},
    }


@torch.inference_mode()
def prompt_of(size: str, format: str, length: int, options: Namespace) -> Line:
    config = HYBRIDS[size]
    tokens = _tokens(config, 1, length)
    line: Line = {"parameters": parameters(config), "length": length}
    with ExitStack() as stack, tempfile.TemporaryDirectory() as room:
        engine = _engine(config, format, Path(room), 1, length + 1)
        logits, sides = {OURS: _full_pass(engine, tokens)[-1]}, {OURS: plain(partial(_first_token, engine, tokens))}
        if not options.alone:
            if format == "bf16":
                with _maybe(line, TRANSFORMERS):
                    read = prefill.theirs(Path(room, "bf16"), format, tokens)
                    logits[TRANSFORMERS], sides[TRANSFORMERS] = read(), plain(read)
            with _maybe(line, LLAMA):
                llama = stack.enter_context(_llama(config, format, Path(room), 1, length, options.threads))
                logits[LLAMA] = llama.feed(tokens)
                sides[LLAMA] = Side(lambda _: llama.feed(tokens), llama.clear)
        line |= _gated(logits, format)
        line |= in_turns(sides, options.repeats)
    medians = {name: seconds[1] for name, seconds in line["seconds"].items()}
    return line | {"tokens_per_second": {name: short(length / seconds) for name, seconds in medians.items()}}


def _engine(config: HybridConfig, format: str, room: Path, rows: int, context: int) -> Any:
    """Ours, on the BF16 weights that all sides begin with, for so many tokens of each row."""
    from seqloom.serve.engine import Engine

    folder = write(config, "bf16", room)
    _tokenizer().save(folder)
    weights = "as_stored" if format == "bf16" else format
    return Engine(folder, rows, weights=weights, prefix_cache=False, cache_tokens=rows * context)


def _steps(engine: Any, prompts: Tensor) -> Side:
    """Rows that answer on and on; a turn gives each of them some more tokens, those included that the one before it
    gave too many, since several can come at once."""
    from seqloom.serve.config import Sampling

    endless = Sampling(temperature=0, max_tokens=3500, ignore_eos=True)
    waiting = {engine.submit(prompt, endless) for prompt in prompts.tolist()}
    while waiting:
        waiting -= {request for request in engine.step() if request.fresh.token_ids}

    taken = 0

    def run(_: None) -> None:
        nonlocal taken
        while taken < STEPS:
            taken += len(engine.step()[0].fresh.token_ids)
        taken -= STEPS

    return Side(run)


def _first_token(engine: Any, tokens: Tensor) -> None:
    from seqloom.serve.config import Sampling

    engine.generate(tokens.tolist(), Sampling(temperature=0, max_tokens=1))


def _full_pass(engine: Any, tokens: Tensor) -> Tensor:
    """Logits after the prompt and over some further tokens, [1 + further, B, V]."""
    hidden, _ = engine.model.hidden(tokens)
    return engine.model.head(hidden[:, -1 - GATE_STEPS :]).transpose(0, 1)


@contextmanager
def _llama(config: HybridConfig, format: str, room: Path, rows: int, context: int, threads: int) -> Iterator[Llama]:
    from benchmarks.peers import require
    from seqloom.systems.hybrid_lm.gguf import write_gguf

    require(PACKAGE)
    require("gguf")
    file = room / "model.gguf"
    write_gguf(room / "bf16", file, format=LLAMA_FORMATS[format])  # type: ignore[arg-type]
    llama = Llama(file, rows, context + GATE_STEPS, threads, config.vocab_size)
    try:
        yield llama
    finally:
        llama.close()


def _greedy(llama: Llama, token: Tensor) -> None:
    for _ in range(STEPS):
        token = llama.feed(token).argmax(-1, keepdim=True)


@contextmanager
def _maybe(line: Line, peer: str) -> Iterator[None]:
    """Go on without a peer that is not here."""
    try:
        yield
    except NotHere as reason:
        line.setdefault("skipped", {})[peer] = str(reason)


def _gated(logits: dict[str, Tensor], format: str) -> Line:
    return {"gate": agree_on_logits(logits, format), "outcome": float(logits[OURS].float().std())}


def _step_bytes(config: HybridConfig, format: str, rows: int, context: int) -> float:
    """Least memory traffic of a step: weights in their format, the head in int8 at the least, keys, values, states."""
    states = decoding_bytes(config, "bf16", rows, context) - decoding_bytes(config, "bf16", 0, context)
    head = config.vocab_size * config.width
    others = decoding_bytes(config, "bf16", 0, context) / 2 - head
    return (others * BITS[format] + head * max(BITS[format], BITS["int8"])) / 8 + states


def _tokens(config: HybridConfig, rows: int, length: int) -> Tensor:
    return torch.randint(3, config.vocab_size, (rows, length), generator=torch.Generator().manual_seed(1))


def _tokenizer() -> Any:
    """A folder needs one, whatever it is; all sides are given token ids."""
    from seqloom.data.tokenizer import train_tokenizer

    return train_tokenizer(["a few words"], 280)


# Context -----------------------------------------------------------------------------------------------------------


@torch.inference_mode()
def context_of(size: str, context: int, options: Namespace) -> Line:
    from seqloom.studies.twins import attention_twin

    configs = {OURS: HYBRIDS[size]}
    if not options.alone:
        configs[OURS + decode.ATTENTION] = attention_twin(HYBRIDS[size])
    line: Line = {"parameters": {name: parameters(config) for name, config in configs.items()}, "context": context}
    line |= in_turns({name: _at(config, context) for name, config in configs.items()}, options.repeats, STEPS)
    rate, medians = read_rate(), {name: seconds[1] for name, seconds in line["seconds"].items()}
    least = {name: decoding_bytes(config, "fp32", 1, context) / rate for name, config in configs.items()}
    return line | {
        "tokens_per_second": {name: short(1 / seconds) for name, seconds in medians.items()},
        "figures": {"predicted_ratio": short(max(least.values()) / least[OURS])},
        "ceiling_bytes_per_second": short(rate),
        "share_of_ceiling": {name: short(least[name] / seconds) for name, seconds in medians.items()},
    }


def _at(config: HybridConfig, context: int) -> Side:
    """A row of an engine's cache after so many tokens; keys and values are random, since they cost the same."""
    from seqloom.nn.paged_kv import PagedRows
    from seqloom.ops.kernels import invariant

    model = build(config, "fp32").eval()
    cache = model.new_cache(1, -(-(context + 64 * STEPS) // PAGE), PAGE, 0)
    cache.clear(0)
    assert cache.reserve(0, context)
    assert config.attention is not None
    shape = (1, config.attention.kv_heads, context, config.attention.head_width)
    for state in cache.states(0, 1, context):
        if isinstance(state, PagedRows):
            state.append(torch.randn(shape), torch.randn(shape))

    def run(_: None) -> None:
        token = torch.zeros(1, 1, dtype=torch.int64)
        with invariant():
            for _step in range(STEPS):
                assert cache.reserve(0, 1)
                hidden, _ = model.hidden(token, states=cache.states(0, 1, 1))
                token = model.head(hidden).argmax(-1)

    return Side(run)
