"""`seqloom evaluate`: what a trained model is worth, in measures of its system or by the tasks of lm-eval."""

from pathlib import Path
from typing import Any

import tyro

from seqloom.cli.arguments import JsonFlag, parse, print_json
from seqloom.cli.runs import read_sources
from seqloom.core import rooms
from seqloom.core.errors import ConfigError, DataError
from seqloom.core.extras import require
from seqloom.data.config import SourceConfig


def main(arguments: list[str]) -> None:
    parse("evaluate", evaluate, arguments)


def evaluate(
    run: tyro.conf.Positional[Path],
    *,
    data: tyro.conf.UseAppendAction[tuple[tuple[str, ...], ...]] = (),
    tasks: str | None = None,
    limit: int | None = None,
    lm: Path | None = None,
    errors: Path | None = None,
    as_json: JsonFlag = False,
) -> None:
    """Measures of a trained model on held-out data: bits per byte, word and character error rates, returns of episodes;
    or benchmark tasks of lm-eval.

    Example: seqloom evaluate runs/demo --data my_texts/ --json

    Example: seqloom evaluate runs/an4 --lm an4.arpa --errors errors.txt

    Args:
        run: a run folder or public model folder.
        data: what to measure on, whole, instead of what the run held back: PATH_OR_NAME ...
        tasks: names of lm-eval tasks or paths of task files, joined by commas (needs the extra eval).
        limit: most rows of text, recordings, episodes, or examples per task; all by default.
        lm: of speech, an ARPA language model to transcribe with (see seqloom lm).
        errors: of speech, a file to write all errors to, transcripts side by side.
    """
    if limit is not None and limit < 1:
        raise ConfigError(f"--limit: {limit} is not allowed; it must be a whole number from 1")
    if tasks is None:
        results = _measure(run, read_sources(data), limit, lm, errors)
        lines = [f"{name.replace('_', ' '):16} {value:,.6g}" for name, value in results.items()]
    else:
        results = _run_tasks(run, tasks.split(","), limit)
        lines = [f"{name}: {_task_line(measures)}" for name, measures in results.items()]
    if as_json:
        print_json(results)
    else:
        print("\n".join(lines))


def _measure(
    run: Path, sources: tuple[SourceConfig, ...], limit: int | None, lm: Path | None, errors: Path | None
) -> dict[str, Any]:
    from rich.console import Console

    from seqloom.cli.display import Display

    system = rooms.owner(run)
    room = rooms.part(system, "evaluate")
    results: dict[str, Any]
    with Display(Console(stderr=True)) as display:
        if lm is None and errors is None:
            results = room.evaluate(run, sources, limit, display.on_prepare)
            return results
        if not hasattr(room, "evaluate_errors"):
            raise ConfigError(f"--{'errors' if lm is None else 'lm'}: is for speech; {run} is a model of {system}")
        results, text = room.evaluate_errors(run, sources, limit, display.on_prepare, lm)
    if errors is not None:
        try:
            errors.write_text(text, encoding="utf-8")
        except OSError as error:
            raise DataError(f"{errors}: cannot be written: {error.strerror}") from error
    return results


def _run_tasks(run: Path, tasks: list[str], limit: int | None) -> dict[str, Any]:
    require("eval", "lm_eval")
    from seqloom.serve.engine import Engine

    results: dict[str, Any] = rooms.part(rooms.owner(run), "harness").run_tasks(Engine(run), tasks, limit)
    return results


def _task_line(measures: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in measures.items() if isinstance(value, float))
