"""`seqloom generate`: a trained model continues prompts; one is streamed, several or a file of them run as a batch."""

import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from seqloom.cli import batch
from seqloom.cli.arguments import JsonFlag, parse, print_json
from seqloom.cli.engine_options import AS_STORED, DraftTokens, EngineOptions
from seqloom.cli.stream import put
from seqloom.core.errors import ConfigError, DataError
from seqloom.serve.config import Sampling

if TYPE_CHECKING:
    from seqloom.serve.engine import Engine


def main(arguments: list[str]) -> None:
    parse("generate", generate, arguments)


def generate(
    run: tyro.conf.Positional[Path],
    prompts: tyro.conf.Positional[tuple[str, ...]] = (),
    *,
    input: Path | None = None,
    output: Path | None = None,
    sampling: Annotated[Sampling, tyro.conf.arg(name="")] = Sampling(),
    options: Annotated[EngineOptions, tyro.conf.arg(name="")] = AS_STORED,
    as_json: JsonFlag = False,
) -> None:
    """Continue prompts with a trained model.

    One prompt is streamed as plain text; several are generated together. The prompt itself is not repeated.
    With --input every line of a file is answered into --output, each line as soon as it is finished; started again, the
    same command goes on with the lines that are missing.

    Example: seqloom generate runs/demo "import os" --max-tokens 100 --temperature 0.7

    Args:
        run: a run folder or public model folder.
        prompts: texts to continue; - reads one from standard input; none begins an empty document.
        input: JSON lines, each with prompt, messages or tokens, an id, and settings of its own (max_tokens, seed, ...).
        output: JSON lines with id, text, finish_reason, token_ids, in the order in which they are finished.
    """
    if (input is None) != (output is None) or (input is not None and prompts):
        raise ConfigError("--input and --output go together, and without prompts on the command line")
    if input is None and not as_json and (sampling.logprobs is not None or sampling.prompt_logprobs is not None):
        raise ConfigError("--logprobs, --prompt-logprobs: plain text shows none; add --json, or use --input")
    if input is not None and output is not None:
        answering = options.answering(run)
        digests = batch.read_digests(input, sampling, answering)
        finished = batch.read_finished(output, digests)
        lines = (line for line in batch.read_lines(input, sampling, answering) if line.id not in finished)
        engine, total = options.open(run), len(digests)
        _answer_file(engine, lines, output, total, len(finished), sampling, options.draft_tokens, as_json)
        return
    texts = [sys.stdin.read() if text == "-" else text for text in prompts or ("",)]
    engine = options.open(run)
    if len(texts) == 1 and not as_json:
        for piece in engine.stream(texts[0], sampling, options.draft_tokens):
            put(piece)
        print()
        return
    start = time.perf_counter()
    completions = engine.generate(texts, sampling, options.draft_tokens)
    seconds = time.perf_counter() - start
    if as_json:
        answers: list[dict[str, Any]] = [
            {
                "prompt": text,
                **asdict(completion),
                "logprobs": batch.likely(completion.logprobs),
                "prompt_logprobs": batch.likely(completion.prompt_logprobs),
            }
            for text, completion in zip(texts, completions, strict=True)
        ]
        print_json({"completions": answers, "seconds": round(seconds, 3)})
        return
    for text, completion in zip(texts, completions, strict=True):
        print(f"--- {text}")
        put(f"{completion.text}\n")


def _answer_file(
    engine: "Engine",
    lines: Iterator[batch.Line],
    target: Path,
    total: int,
    finished: int,
    sampling: Sampling,
    draft_tokens: DraftTokens,
    as_json: bool,
) -> None:
    """
    Raises:
        DataError: some lines could not be answered; or the output cannot be written.
    """
    from rich.console import Console

    from seqloom.cli.counter import Counter

    start, tokens, errors = time.perf_counter(), 0, 0
    counter = Counter(Console(stderr=True), "answered", total, finished)
    try:
        with target.open("a", encoding="utf-8") as file, counter:
            for record in batch.answers(engine, lines, sampling, draft_tokens):
                batch.write(file, record)
                errors += "error" in record
                tokens += len(record.get("token_ids", ()))
                counter.advance(f"{tokens / (time.perf_counter() - start):,.0f} tokens/s")
    except OSError as error:
        raise DataError(f"{target}: cannot be written: {error.strerror}") from error
    if as_json:
        done = {"lines": total, "answered": total - errors, "errors": errors, "found_finished": finished}
        print_json({**done, "tokens": tokens, "seconds": round(time.perf_counter() - start, 3)})
    if errors:
        raise DataError(
            f"{errors} of {total} lines could not be answered; {target} says why, the next try repeats them"
        )
