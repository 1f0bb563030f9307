"""Cached generation beside transformers with the same weights: seconds per step, each giving every row one token.

    python -m benchmarks decode --only '30m-bf16-*' '*-context*'

Cases are SIZE-FORMAT-rowsB: B rows after a prompt of 128 tokens; and SIZE-FORMAT-contextC: one row after C tokens, also
for an attention-only twin of the same size on both sides, which shows what the Mamba layers are for. All sides draw the
likeliest token from the model itself, without an engine around it. Every turn begins at the same context.
Gate: logits after the prompt and over some cached steps agree. The ceiling is the time that memory needs for the
weights and states of a step, at the fastest read measured in the same run.
"""

import copy
import tempfile
from argparse import Namespace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.case import Case, Line, NotHere
from benchmarks.ceiling import read_rate
from benchmarks.models import SIZES, TOY, decoding_bytes, parameters, write
from benchmarks.pairing import OURS, Side, in_turns, short
from benchmarks.peers import TRANSFORMERS, agree_on_logits, open_transformers, versions

FORMATS, ROWS, CONTEXTS = ("fp32", "bf16"), (1, 8), (128, 1024, 4096, 16384)
PROMPT, STEPS, GATE_STEPS, PIECE = 128, 16, 4, 512
ATTENTION = "_attention"
"""What the name of an attention-only twin ends in."""


class Opened(NamedTuple):
    """A side after its prompt."""

    logits: Tensor
    side: Side


def cases(options: Namespace) -> list[Case]:
    found = []
    for size in SIZES:
        for format in FORMATS:
            shapes = [(f"rows{rows}", rows, PROMPT, False) for rows in ROWS]
            if size != "moe":
                shapes += [(f"context{context}", 1, context, True) for context in CONTEXTS]
            found += [
                Case(f"{size}-{format}-{name}", partial(measure, size, format, rows, context, twin), size == TOY)
                for name, rows, context, twin in shapes
            ]
    return found


@torch.inference_mode()
def measure(size: str, format: str, rows: int, context: int, twin: bool, options: Namespace) -> Line:
    configs = {OURS: SIZES[size]}
    if twin and not options.alone:
        from seqloom.studies.twins import attention_twin

        configs[OURS + ATTENTION] = attention_twin(SIZES[size])
    line: Line = {
        "parameters": {name: parameters(config) for name, config in configs.items()},
        "rows": rows,
        "context": context,
    }
    tokens = torch.randint(
        SIZES[size].vocab_size, (rows, context + GATE_STEPS), generator=torch.Generator().manual_seed(1)
    )
    opened: dict[str, Opened] = {}
    gate: dict[str, float] = {}
    for name, config in list(configs.items()):
        with tempfile.TemporaryDirectory() as room:
            folder = write(config, format, Path(room))
            opened[name] = ours(folder, tokens)
            if options.alone:
                continue
            peer = name.replace(OURS, TRANSFORMERS)
            try:
                opened[peer] = theirs(folder, format, tokens)
            except NotHere as reason:
                line.setdefault("skipped", {})[peer] = str(reason)
                continue
            configs[peer] = config
            gate |= agree_on_logits({OURS: opened[name].logits, peer: opened[peer].logits}, format)
            line["versions"] = versions(TRANSFORMERS)
    line |= {"gate": gate, "outcome": float(opened[OURS].logits.float().std())}
    sides = {name: found.side for name, found in opened.items()}
    line |= in_turns(sides, options.repeats, STEPS)
    rate = read_rate()
    medians = {name: seconds[1] for name, seconds in line["seconds"].items()}
    least = {name: decoding_bytes(configs[name], format, rows, context) / rate for name in medians}
    return line | {
        "tokens_per_second": {name: short(rows / seconds) for name, seconds in medians.items()},
        "ceiling_bytes_per_second": short(rate),
        "ceiling_seconds": {name: short(seconds) for name, seconds in least.items()},
        "share_of_ceiling": {name: short(least[name] / seconds) for name, seconds in medians.items()},
    }


def ours(folder: Path, tokens: Tensor) -> Opened:
    """Our model after all tokens but the last few, which the gate feeds it one by one."""
    from seqloom import load

    model = load(folder).eval()
    states = model.new_states(len(tokens))
    context = tokens.shape[1] - GATE_STEPS

    def feed(part: Tensor) -> Tensor:
        hidden, _ = model.hidden(part, states=states)
        return model.head(hidden[:, -1:])[:, -1]

    logits = [[feed(part) for part in tokens[:, :context].split(PIECE, 1)][-1]]
    marks, first = [state and state.snapshot() for state in states], logits[0].argmax(-1, keepdim=True)
    logits += [feed(tokens[:, place : place + 1]) for place in range(context, tokens.shape[1])]

    def run(token: Tensor) -> None:
        for _ in range(STEPS):
            token = feed(token).argmax(-1, keepdim=True)

    def before() -> Tensor:
        for state, mark in zip(states, marks, strict=True):
            if state is not None:
                state.restore(mark)
        return first

    return Opened(torch.stack(logits), Side(run, before))


def theirs(folder: Path, format: str, tokens: Tensor) -> Opened:
    """The same of transformers; its cache cannot go back, so every turn takes a copy."""
    model = open_transformers(folder, format).eval()
    context = tokens.shape[1] - GATE_STEPS

    def feed(part: Tensor, cache: Any) -> tuple[Tensor, Any]:
        given = model(input_ids=part, past_key_values=cache, use_cache=True, logits_to_keep=1)
        return given.logits[:, -1], given.past_key_values

    cache = None
    for part in tokens[:, :context].split(PIECE, 1):
        last, cache = feed(part, cache)
    kept, first, logits = copy.deepcopy(cache), last.argmax(-1, keepdim=True), [last]
    for place in range(context, tokens.shape[1]):
        last, cache = feed(tokens[:, place : place + 1], cache)
        logits.append(last)

    def run(cache: Any) -> None:
        token = first
        for _ in range(STEPS):
            last, cache = feed(token, cache)
            token = last.argmax(-1, keepdim=True)

    return Opened(torch.stack(logits), Side(run, lambda: copy.deepcopy(kept)))
