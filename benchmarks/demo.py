"""The demo from nothing, timed as a person meets it: data, training, evaluation, sample. One JSON line.

    python benchmarks/demo.py --out benchmarks/results/demo_laptop_2026-11-26.jsonl

Caches are empty at the start. The sample is stored with the numbers.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from machine import place
from seqloom.core.logs import read_metrics
from seqloom.systems.hybrid_lm.evaluate import evaluate


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="also write the line to this file")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder, "run")
        os.environ["SEQLOOM_CACHE"] = str(Path(folder, "cache"))
        start = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-m", "seqloom.cli.main", "demo", "--out", str(run)],
            capture_output=True,
            text=True,
            check=True,
        )
        seconds = time.perf_counter() - start
        last = [record for record in read_metrics(run / "metrics.jsonl") if record["kind"] == "train"][-1]
        source = json.loads((run / "data.json").read_text())["sources"][0]
        held_out = evaluate(run)
    line = {
        "demo_seconds": round(seconds, 1),
        "training_seconds": round(last["seconds"], 1),
        "training_tokens": last["tokens"],
        "tokens_per_second": round(last["tokens"] / last["seconds"]),
        "peak_memory_bytes": last["memory_bytes"],
        "held_out": held_out,
        "corpus": {key: source[key] for key in ("source", "python", "list_sha256", "documents", "bytes", "tokens")},
        "sample": done.stdout.split("3/3")[1].split("\n\nNext:")[0].partition("\n\n")[2],
        **place(torch.device("cpu")),
    }
    print(json.dumps(line))
    if args.out:
        args.out.write_text(json.dumps(line) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
