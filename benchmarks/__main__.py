"""`python -m benchmarks AREA`: JSON lines on standard output, the same as a table for people on standard error.

    python -m benchmarks limits
    python -m benchmarks train --only '150m-*' --threads 2 --out benchmarks/results/train_mymachine_2026-11-27.jsonl
    python -m benchmarks decode --base HEAD~10

The exit status is 1 if a gate failed, as ours and a peer did not compute the same, or if a case broke; the others are
measured all the same, and every line is kept as soon as it is there.
"""

import argparse
import importlib
import json
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import nullcontext
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

AREAS = {
    "limits": "what this machine can do at most: memory, products, calls",
    "ops": "forward and backward of every op beside plain torch",
    "train": "training steps beside transformers",
    "precision": "rounding to few bits, and training steps in it beside BF16",
    "memory": "peak memory of training steps beside transformers",
    "decode": "cached generation beside transformers, and how it grows with context",
    "prefill": "reading prompts beside transformers",
    "serve": "the engine beside llama.cpp and transformers, contexts, and what HTTP costs",
    "finetune": "fine-tuning with adapters beside transformers and PEFT",
    "speech": "features, CTC, recurrence, search, training and streams of a recogniser beside torch's",
    "agent": "environments, V-trace, acting and learning of an agent",
    "demo": "`make demo` from nothing",
    "gpu": "kernels and training steps on a CUDA device",
}


def main(arguments: list[str]) -> int:
    chosen = arguments[0] if arguments else None
    if chosen not in AREAS:
        print(_help(), file=sys.stdout if chosen in ("-h", "--help") else sys.stderr)
        return 0 if chosen in ("-h", "--help") else 2
    area = importlib.import_module(f"benchmarks.{chosen}")
    options = _options(chosen, area, arguments[1:])
    lines = []
    with options.out.open("w", encoding="utf-8") if options.out else nullcontext() as kept:
        for line in _lines(area, options):
            lines.append(line)
            for target in (sys.stdout, kept):
                if target is not None:
                    print(json.dumps(line), file=target, flush=True)
    from benchmarks.table import table

    print(table(lines), file=sys.stderr)
    return int(any("error" in line for line in lines))


def _options(name: str, area: Any, arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog=f"python -m benchmarks {name}",
        description=area.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", metavar="CASE", nargs="+", help="names of cases, with * and ? as in file names")
    parser.add_argument(
        "--threads", type=int, default=_cores(), help="of torch and of our kernels (default: all cores)"
    )
    parser.add_argument("--repeats", type=int, default=5, help="timed turns of every side (default: 5)")
    parser.add_argument("--out", type=Path, help="write the lines to this file as well")
    parser.add_argument("--base", metavar="REV", help="compare with seqloom as of this commit instead of with peers")
    parser.add_argument("--rounds", type=int, default=3, help="turns of processes that alternate (default: 3)")
    parser.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)  # a side of --base: no gate, no peers
    if hasattr(area, "add_options"):
        area.add_options(parser)
    options = parser.parse_args(arguments)
    options.area = name
    known = [case.name for case in area.cases(options)]
    for pattern in options.only or []:
        if not any(fnmatchcase(case, pattern) for case in known):
            parser.error(f"--only: no case is named '{pattern}'; there are {', '.join(known)}")
    return options


def _lines(area: Any, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    import torch

    from benchmarks.case import Disagreement, NotHere
    from benchmarks.machine import place

    torch.set_num_threads(options.threads)
    device = torch.device(getattr(options, "device", "cpu"))
    for case in area.cases(options):
        if not (any(fnmatchcase(case.name, word) for word in options.only) if options.only else not case.when_named):
            continue
        torch.manual_seed(0)
        try:
            if options.base:
                from benchmarks.base import beside_base

                line = beside_base(case.name, options)
            else:
                line = case.measure(options)
        except Disagreement as finding:
            line = {"error": str(finding)}
        except NotHere as reason:
            line = {"not_measured": str(reason)}
        except Exception as error:
            traceback.print_exc()
            line = {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"}
        yield {"area": options.area, "case": case.name, **line, **place(device)}


def _help() -> str:
    areas = "\n".join(f"  {name:10}{what}" for name, what in AREAS.items())
    return (
        f"usage: python -m benchmarks AREA [options]\n\n{areas}\n\npython -m benchmarks AREA --help explains one area."
    )


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
