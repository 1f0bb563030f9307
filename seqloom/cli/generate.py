"""`seqloom generate`: a trained model continues prompts; one is streamed, several run as a batch."""

import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import tyro

from seqloom.cli.arguments import JsonFlag, parse, print_json
from seqloom.cli.stream import put
from seqloom.nn.state_formats import KVFormat, SsmFormat
from seqloom.serve.config import Sampling


def main(arguments: list[str]) -> None:
    parse("generate", generate, arguments)


def generate(
    run: tyro.conf.Positional[Path],
    prompts: tyro.conf.Positional[tuple[str, ...]] = ("",),
    *,
    sampling: Annotated[Sampling, tyro.conf.arg(name="")] = Sampling(),
    draft_tokens: int = 0,
    kv_cache: KVFormat | None = None,
    ssm_state: SsmFormat | None = None,
    as_json: JsonFlag = False,
) -> None:
    """Continue prompts with a trained model.

    One prompt is streamed as plain text; several are generated together. The prompt itself is not repeated.

    Example: seqloom generate runs/demo "import os" --max-tokens 100 --temperature 0.7

    Args:
        run: a run folder or public model folder.
        prompts: texts to continue; - reads one from standard input; none begins an empty document.
        draft_tokens: tokens to guess ahead with the prediction block (faster, never different).
        kv_cache: what to store keys and values in; as the model has it, if not given.
        ssm_state: what to store Mamba states in; _sr rounds stochastically.
    """
    from seqloom.serve.engine import Engine

    texts = [sys.stdin.read() if text == "-" else text for text in prompts]
    engine = Engine(run, kv_cache=kv_cache, ssm_state=ssm_state)
    if len(texts) == 1 and not as_json:
        for piece in engine.stream(texts[0], sampling, draft_tokens):
            put(piece)
        print()
        return
    start = time.perf_counter()
    completions = engine.generate(texts, sampling, draft_tokens)
    seconds = time.perf_counter() - start
    if as_json:
        answers: list[dict[str, Any]] = [
            {"prompt": text, **asdict(completion)} for text, completion in zip(texts, completions, strict=True)
        ]
        print_json({"completions": answers, "seconds": round(seconds, 3)})
        return
    for text, completion in zip(texts, completions, strict=True):
        print(f"--- {text}")
        put(f"{completion.text}\n")
