"""`seqloom demo`: the walk through the house, made of nothing but the other verbs."""

import importlib
import shlex
from pathlib import Path

from rich.console import Console

from seqloom.cli.arguments import parse

PROMPT = "def read_lines(path"

WALK = (
    (
        "Train: the sources of Python's standard library become a tokenizer, packed shards and a model",
        "train hybrid_lm/tiny --out {run}",
    ),
    ("Measure: how many bits the model needs per byte of held-out text", "evaluate {run}"),
    (
        "Write: the model goes on from a first line",
        "generate {run} {prompt} --max-tokens 160 --temperature 0.6 --top-p 0.9 --seed 2",
    ),
)

NEXT = """\
seqloom chat {run}
seqloom serve {run}
seqloom generate {run} "import " --max-tokens 80
seqloom show {run}
seqloom train hybrid_lm/tiny --data PATH --out runs/mine
"""


def main(arguments: list[str]) -> None:
    parse("demo", demo, arguments)


def demo(*, out: Path = Path("runs/demo")) -> None:
    """Train a small language model on this machine's Python, measure it and let it write. About three minutes.

    Interrupted, it goes on where it stopped when started again.

    Example: seqloom demo --out runs/demo

    Args:
        out: run folder.
    """
    console = Console()
    run = shlex.quote(str(out))
    for number, (heading, command) in enumerate(WALK, start=1):
        line = command.format(run=run, prompt=shlex.quote(PROMPT))
        console.print(f"\n{number}/{len(WALK)}  {heading}", style="bold", markup=False, highlight=False, soft_wrap=True)
        console.print(f"$ seqloom {line}\n", style="dim", markup=False, highlight=False, soft_wrap=True)
        verb, *rest = shlex.split(line)
        importlib.import_module(f"seqloom.cli.{verb}").main(rest)
    console.print("\nNext:", style="bold")
    console.print(NEXT.format(run=run), markup=False, highlight=False, soft_wrap=True, end="")
