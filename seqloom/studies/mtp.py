"""How many guesses of the prediction block are right, and what they gain?

A trained model continues passages of held-out text one by one, with every number of guesses from none to seven and with
the number that the engine finds by itself, taking the likeliest token and by sampling. Guesses must never change a
text. Without a model two are trained that differ in one thing: how far ahead their block learned to look.
Papers: Nemotron 3 white paper (arXiv 2512.20856) and Super and Ultra reports, MTP sections.
"""

import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

from seqloom.core.config import Ge, Interval, MinLen, config, parse, read_yaml, to_data
from seqloom.core.errors import ConfigError, DataError
from seqloom.data.config import SourceConfig
from seqloom.serve.config import Sampling
from seqloom.studies import mtp_tables as tables
from seqloom.studies.measured import measured
from seqloom.studies.mtp_tables import AUTO, DEPTHS, GIVEN, GREEDY, SAMPLED, Drafted
from seqloom.studies.paired import text_run
from seqloom.studies.study import Findings
from seqloom.systems.hybrid_lm.config import (
    AttentionConfig,
    HybridConfig,
    MambaConfig,
    MlpConfig,
    MtpConfig,
    Run,
    TextTaskConfig,
)
from seqloom.train.observer import Observer
from seqloom.train.state import RUN


@config
class Options:
    """Continue held-out text with guesses of every length, and compare texts and times.

    Without a model two are trained first, which takes some minutes.

    Example: seqloom study mtp --model runs/demo --lengths 1 2 3
    """

    model: Path | None = None
    """A run folder of a language model with a prediction block; its held-out text is continued."""
    data: Annotated[tuple[str, ...], MinLen(1)] = ("python:stdlib",)
    """Text to learn, where no model is given."""
    steps: Annotated[int, Ge(8)] = 400
    """Training steps, where no model is given."""
    lengths: Annotated[tuple[Annotated[int, Interval(ge=1, le=16)], ...], MinLen(1)] = (1, 2, 3, 4, 5, 6, 7)
    """Guesses of a step."""
    passages: Annotated[int, Ge(1)] = 8
    """To continue, each alone."""
    prompt: Annotated[int, Ge(1)] = 64
    """Tokens of a passage that are given."""
    answer: Annotated[int, Ge(2)] = 96
    """Tokens that are written."""


def study(options: Options, folder: Path, watch: Observer) -> Findings:
    """Train models if none is given, measure what is missing, and judge it.

    Raises:
        ConfigError, DataError, CheckpointError: the model or its text cannot be used.
        Interrupted: the same command goes on.
    """
    if options.model is not None:
        sources = {GIVEN: options.model}
    else:
        sources = {name: _trained(depth, options, folder / f"depth-{depth}", watch) for name, depth in DEPTHS.items()}
    found, machine = {}, ""
    for name, source in sources.items():
        watch.on_message(f"{name}: continuing {options.passages} passages with up to {max(options.lengths)} guesses")
        found[name], machine = _measured(source, options, folder / f"drafted-{name.replace(' ', '-')}.json")
    return findings(options, found, machine)


def findings(options: Options, found: dict[str, Drafted], machine: str) -> Findings:
    """What was measured, told.

    Args:
        found: what `drafted` gave, by model.
    """
    return Findings(
        title="Guessing ahead with the prediction block",
        source="Nemotron 3 white paper, arXiv 2512.20856; Nemotron 3 Super and Ultra: multi-token prediction",
        setting={
            "models": ", ".join(found) if options.model is None else str(options.model),
            "text": f"{options.passages} held-out passages, {options.prompt} tokens given, {options.answer} written",
            "batch": "1",
            "machine": machine,
        },
        tables=[
            *(tables.acceptance(name, each) for name, each in found.items()),
            *(tables.speed(name, each) for name, each in found.items()),
        ],
        claims=tables.claims(found),
        remarks=[
            "A guess is kept exactly where it is the token that would have been drawn in its place, from the same "
            "noise; texts are therefore equal token by token, sampled ones too, and not only alike in distribution.",
            "What a pass costs, in plain steps, is the tokens of a pass over the gain in time, and holds the guessing.",
        ],
        charts=tables.charts(found),
        data={"drafted": found},
    )


# Measuring ---------------------------------------------------------------------------------------------------------


def _measured(source: Path, options: Options, path: Path) -> tuple[Drafted, str]:
    """What `drafted` gives, and the machine; made once for a model as it is."""
    files = [(file.name, file.stat()) for file in source.glob("*.safetensors")]
    weights = {name: [facts.st_size, facts.st_mtime_ns] for name, facts in sorted(files)}
    settings = {**to_data(replace(options, model=None)), "model": str(source), "weights": weights}
    return measured(path, settings, lambda: drafted(source, options, sorted(set(options.lengths))))


def drafted(source: Path, options: Options, lengths: list[int]) -> Drafted:
    """Way of choosing -> number of guesses -> what came of it; plain data.

    All lengths take turns at a passage, in another order each time, so that a busy machine slows all of them alike.
    """
    from seqloom.serve.engine import Engine

    ways: list[Any] = [0, *lengths, AUTO]
    engine = Engine(source, 1, prefix_cache=False)
    if engine.model.mtp is None:
        raise ConfigError(f"--model: {source} has no prediction block, and this study is about what one guesses")
    passages = _passages(source, options, engine.model.vocab_size)
    engine.generate(passages[:1], Sampling(max_tokens=4), max(lengths))  # warms up
    most = len(engine.statistics.drafted)
    found: Drafted = {}
    for way, temperature in ((GREEDY, 0.0), (SAMPLED, 1.0)):
        counts = found[way] = {str(length): _nothing(most if length == AUTO else length) for length in ways}
        for number, passage in enumerate(passages):
            sampling = Sampling(temperature=temperature, max_tokens=options.answer, seed=number)
            order = ways if number % 2 else ways[::-1]
            texts = {length: _continued(engine, passage, sampling, length, counts[str(length)]) for length in order}
            for length in ways[1:]:
                counts[str(length)]["same"] += texts[length] == texts[0]
    return found


def _nothing(length: int) -> dict[str, Any]:
    return {"seconds": 0.0, "tokens": 0, "offered": [0] * length, "accepted": [0] * length, "same": 0, "texts": 0}


def _continued(engine: Any, passage: list[int], sampling: Sampling, length: Any, count: dict[str, Any]) -> list[int]:
    """Write one continuation, and add what it took and what was guessed."""
    before, start = engine.statistics, time.perf_counter()
    (completion,) = engine.generate([passage], sampling, length)
    count["seconds"] += time.perf_counter() - start
    after = engine.statistics
    for name, now, then in (
        ("offered", after.drafted, before.drafted),
        ("accepted", after.accepted, before.accepted),
    ):
        count[name] = [known + new - old for known, new, old in zip(count[name], now, then, strict=False)]
    count["tokens"] += len(completion.token_ids)
    count["texts"] += 1
    written: list[int] = completion.token_ids
    return written


def _passages(source: Path, options: Options, vocab_size: int) -> list[list[int]]:
    """Beginnings of held-out text of a run, packed documents read as one text."""
    from seqloom.data.prepare import prepare

    if not (source / RUN).exists():
        raise ConfigError(f"--model: {source} has no {RUN} that says which text it did not learn; give a run folder")
    data = parse(Run, read_yaml(source / RUN), str(source / RUN)).task.data
    data = replace(data, phases=(), tokenizer=str(source))
    prepared = prepare(data, vocab_size=vocab_size, sequence_length=options.prompt, rows_total=1, seed=0, progress=None)
    count = min(options.passages, len(prepared.valid))
    if not count:
        raise DataError(f"{source}: its held-out text has no passage of --prompt {options.prompt}")
    return prepared.valid.rows([index * len(prepared.valid) // count for index in range(count)]).tokens.tolist()


# The models of this study ------------------------------------------------------------------------------------------


def _trained(depth: int, options: Options, folder: Path, watch: Observer) -> Path:
    """The folder of a model that learned the text, and to look so far ahead."""
    from seqloom.train.loop import train

    run, data = RUN_HERE, RUN_HERE.task.data
    data = replace(data, sources=tuple(SourceConfig(path=path) for path in options.data))
    model = replace(run.model, mtp=replace(MTP, depth=depth))
    run = replace(run, model=model, task=replace(run.task, data=data), train=replace(run.train, steps=options.steps))
    train(run, folder, watch)
    return folder


MTP = MtpConfig(pattern="*-")
RUN_HERE = text_run(
    "mtp",
    TextTaskConfig,
    HybridConfig(
        pattern="M-M-M*-M-M-M*-",
        vocab_size=4096,
        width=192,
        mamba=MambaConfig(heads=12, head_width=32, state_width=32, groups=2, chunk=64),
        attention=AttentionConfig(heads=6, kv_heads=2, head_width=32),
        mlp=MlpConfig(hidden_width=576),
        init_std=0.02,
    ),
    sequence_length=256,
    batch_rows=8,
    steps=400,
)
