"""The demo from nothing, timed as a person meets it: data, training, evaluation, sample.

    python -m benchmarks demo --out benchmarks/results/demo_mymachine_2026-11-26.jsonl
    python -m benchmarks demo --base 9d2ad5f --rounds 1

Caches are empty at the start, so kernels are compiled on the way. `seconds` are those of the training part, with its
evaluations and checkpoints; it begins when data and kernels are there, which `whole_demo_seconds` counts as well. The
ceiling is what the matrix products of its steps would take at the fastest rate that torch reaches here; norms,
convolutions, softmax and the rest are not counted. Orthogonalised updates count as the plain iteration, for all commits
alike, which takes twice the products that are needed. The sample is stored with the numbers.
Two commits are compared only if they end at the same bits per byte of held-out text.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from pathlib import Path

from benchmarks.case import Case, Line
from benchmarks.ceiling import arithmetic_rate
from benchmarks.models import training_flops as model_flops
from benchmarks.pairing import OURS, quartiles, short


def cases(options: Namespace) -> list[Case]:
    return [Case("demo", measure)]


def measure(options: Namespace) -> Line:
    from seqloom.core.logs import read_metrics
    from seqloom.systems.hybrid_lm.evaluate import evaluate

    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder, "run")
        command = [sys.executable, "-m", "seqloom.cli.main", "demo", "--out", str(run)]
        own = {"SEQLOOM_CACHE": str(Path(folder, "cache")), "OMP_NUM_THREADS": str(options.threads)}
        environment = {**os.environ, **own}
        start = time.perf_counter()
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        seconds = time.perf_counter() - start
        last = [record for record in read_metrics(run / "metrics.jsonl") if record["kind"] == "train"][-1]
        source = json.loads((run / "data.json").read_text(encoding="utf-8"))["sources"][0]
        os.environ |= own  # the data that the run was measured on lies in its cache
        held_out = evaluate(run)
    flops, ceiling = training_flops(), arithmetic_rate("fp32")
    shown = ("source", "python", "list_sha256", "documents", "bytes", "tokens")
    return {
        "seconds": {OURS: quartiles([last["seconds"]])},
        "tokens_per_second": {OURS: round(last["tokens"] / last["seconds"])},
        "figures": {"whole_demo_seconds": round(seconds, 1), "bits_per_byte": round(held_out["bits_per_byte"], 4)},
        "outcome": held_out["bits_per_byte"],
        "gflops": short(flops / last["seconds"] / 1e9),
        "ceiling_gflops": short(ceiling / 1e9),
        "share_of_ceiling": {OURS: short(flops / last["seconds"] / ceiling)},
        "training_tokens": last["tokens"],
        "peak_memory_bytes": last["memory_bytes"],
        "held_out": held_out,
        "corpus": {key: source[key] for key in shown},
        "sample": done.stdout.split("3/3")[-1].split("\n\nNext:")[0].partition("\n\n")[2],
    }


ITERATIONS = 5
"""Of an orthogonalised update; older commits keep the number elsewhere."""


def training_flops() -> float:
    """Of the matrix products of the whole training: the model and its prediction block, forward and backward, and the
    orthogonalised updates."""
    import torch

    from seqloom.core.rooms import recipe
    from seqloom.systems.hybrid_lm.budget import layer_parameters
    from seqloom.train.optimizers import hidden_matrices

    run = recipe("hybrid_lm/tiny")
    config, rows, length = run.model, run.task.batch_rows, run.task.sequence_length
    step = model_flops(config, rows, length)
    if config.mtp is not None:
        block = sum(layer_parameters(letter, config, active=True) for letter in config.mtp.pattern)
        head = config.vocab_size * config.width
        step += 6 * rows * length * config.mtp.depth * (block + 2 * config.width**2 + head)
    with torch.device("meta"):
        matrices = hidden_matrices(config.build())
    for matrix in matrices:
        short_side, long_side = sorted(matrix.shape[-2:])
        count = matrix.numel() // (short_side * long_side)
        step += 2 * count * ITERATIONS * (2 * short_side**2 * long_side + short_side**3)
    return run.train.steps * step
