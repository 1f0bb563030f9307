"""`seqloom evaluate`: what a trained model is worth, in measures of its system or by the tasks of lm-eval."""

from pathlib import Path
from typing import Any

import tyro

from seqloom.cli.arguments import JsonFlag, parse, print_json
from seqloom.cli.runs import read_sources
from seqloom.core import rooms
from seqloom.core.extras import require


def main(arguments: list[str]) -> None:
    parse("evaluate", evaluate, arguments)


def evaluate(
    run: tyro.conf.Positional[Path],
    *,
    data: tyro.conf.UseAppendAction[tuple[tuple[str, ...], ...]] = (),
    tasks: str | None = None,
    limit: int | None = None,
    as_json: JsonFlag = False,
) -> None:
    """Bits per byte and perplexity of a trained model on held-out text; or benchmark tasks of lm-eval.

    Example: seqloom evaluate runs/demo --data my_texts/ --json

    Args:
        run: a run folder or public model folder.
        data: corpora to measure on, whole, instead of the run's held-out text: PATH_OR_NAME ...
        tasks: names of lm-eval tasks or paths of task files, joined by commas (needs the extra eval).
        limit: most rows of text, or examples per task; all by default.
    """
    from rich.console import Console

    from seqloom.cli.display import Display

    system = rooms.owner(run)
    results: dict[str, Any]
    if tasks is None:
        sources = read_sources([source for group in data for source in group])
        with Display(Console(stderr=True)) as display:
            results = rooms.part(system, "evaluate").evaluate(run, sources, limit, display.on_prepare)
    else:
        require("eval", "lm_eval")
        from seqloom.serve.engine import Engine

        results = rooms.part(system, "harness").run_tasks(Engine(run), tasks.split(","), limit)
    if as_json:
        print_json(results)
        return
    for name, value in results.items():
        print(f"{name.replace('_', ' '):16} {value:,.6g}" if tasks is None else f"{name}: {_task_line(value)}")


def _task_line(measures: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in measures.items() if isinstance(value, float))
