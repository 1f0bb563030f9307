"""Reading a prompt beside transformers with the same weights: seconds until the logits after its last token.

Cases are SIZE-FORMAT-TOKENS. Ours reads pieces into its states, as the engine does; transformers reads the prompt at
once into its cache. Gate: both give the same logits. The ceiling is the products of this format alone, as in `train`.
"""

import tempfile
from argparse import Namespace
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.case import Case, Line, NotHere
from benchmarks.ceiling import arithmetic_rate
from benchmarks.models import SIZES, TOY, parameters, prefill_flops, write
from benchmarks.pairing import OURS, in_turns, plain, short
from benchmarks.peers import TRANSFORMERS, agree_on_logits, open_transformers, versions

FORMATS, LENGTHS = ("fp32", "bf16"), (512, 8192)

Read = Callable[[], Tensor]
"""Reads the prompt; gives the logits after it."""


def cases(options: Namespace) -> list[Case]:
    return [
        Case(f"{size}-{format}-{length}", partial(measure, size, format, length), size == TOY)
        for size in SIZES
        for format in FORMATS
        for length in LENGTHS
    ]


@torch.inference_mode()
def measure(size: str, format: str, length: int, options: Namespace) -> Line:
    config = SIZES[size]
    line: Line = {"parameters": parameters(config), "length": length}
    tokens = torch.randint(config.vocab_size, (1, length), generator=torch.Generator().manual_seed(1))
    with tempfile.TemporaryDirectory() as room:
        folder = write(config, format, Path(room))
        readers = {OURS: ours(folder, tokens)}
        if not options.alone:
            try:
                readers[TRANSFORMERS] = theirs(folder, format, tokens)
                line["versions"] = versions(TRANSFORMERS)
            except NotHere as reason:
                line["skipped"] = {TRANSFORMERS: str(reason)}
    logits = {name: read() for name, read in readers.items()}
    line |= {"gate": agree_on_logits(logits, format), "outcome": float(logits[OURS].float().std())}
    line |= in_turns({name: plain(read) for name, read in readers.items()}, options.repeats)
    flops, ceiling = prefill_flops(config, length), arithmetic_rate(format)
    medians = {name: seconds[1] for name, seconds in line["seconds"].items()}
    return line | {
        "tokens_per_second": {name: short(length / seconds) for name, seconds in medians.items()},
        "ceiling_gflops": short(ceiling / 1e9),
        "share_of_ceiling": {name: short(flops / seconds / ceiling) for name, seconds in medians.items()},
    }


def ours(folder: Path, tokens: Tensor) -> Read:
    from seqloom import load
    from seqloom.serve.engine import PREFILL_TOKENS

    model = load(folder).eval()

    def read() -> Tensor:
        states = model.new_states(len(tokens))
        for part in tokens[:, :-1].split(PREFILL_TOKENS, 1):
            model.remember(part, states)
        hidden, _ = model.hidden(tokens[:, -1:], states=states)
        return model.head(hidden[:, -1])

    return read


def theirs(folder: Path, format: str, tokens: Tensor) -> Read:
    model = open_transformers(folder, format).eval()
    return lambda: model(input_ids=tokens, use_cache=True, logits_to_keep=1).logits[:, -1]
