"""How few bits may a state have that is rounded after every token, and does stochastic rounding help?

A trained model reads held-out text token by token and remembers in one format after the other; beside it stands a bare
recurrence, in which a slow state either stalls or keeps its mean (`state_rounding`).
Papers: Nemotron 3 Super and Ultra: change of accuracy and of the length of answers against an FP32 state.
"""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

from seqloom.core.config import Ge, MinLen, config, parse, read_yaml, to_data
from seqloom.core.errors import ConfigError, DataError
from seqloom.core.rooms import load
from seqloom.data.config import SourceConfig
from seqloom.nn.state_formats import SsmFormat, StateFormats
from seqloom.studies.measured import measured
from seqloom.studies.paired import text_run
from seqloom.studies.ssm_cache_tables import (
    EXACT,
    KINDS,
    KV,
    free,
    keys_values,
    nearer,
    paper_table,
    recurrence_table,
    stalls,
    text_table,
)
from seqloom.studies.state_rounding import decode, recurrence
from seqloom.studies.study import Findings
from seqloom.systems.hybrid_lm.config import (
    AttentionConfig,
    HybridConfig,
    MambaConfig,
    MlpConfig,
    Run,
    TextTaskConfig,
)
from seqloom.train.observer import Observer
from seqloom.train.state import RUN

if TYPE_CHECKING:
    from torch import Tensor


@config
class Options:
    """Decode held-out text with SSM states of every format, and run a bare recurrence in each.

    Without a model, one is trained first; all takes about five minutes on one core.

    Example: seqloom study ssm_cache --model runs/demo --tokens 1024
    """

    model: Path | None = None
    """A run folder of a hybrid language model; its held-out text is read."""
    data: Annotated[tuple[str, ...], MinLen(1)] = ("python:stdlib",)
    """Text to learn, where no model is given."""
    steps: Annotated[int, Ge(8)] = 200
    """Training steps, where no model is given."""
    rows: Annotated[int, Ge(1)] = 8
    """Passages to read."""
    tokens: Annotated[int, Ge(8)] = 512
    """Tokens of each."""
    seeds: Annotated[int, Ge(1)] = 3
    """Of stochastic rounding."""
    recurrence_steps: Annotated[int, Ge(8)] = 8192
    """Tokens that the bare recurrence runs for."""


def study(options: Options, folder: Path, watch: Observer) -> Findings:
    """Train a model if none is given, measure what is missing, and judge it.

    Raises:
        ConfigError, DataError, CheckpointError: the model or its text cannot be used.
        Interrupted: the same command goes on.
    """
    source = options.model or _trained(options, folder, watch)
    weights = {path.name: [path.stat().st_size, path.stat().st_mtime_ns] for path in source.glob("*.safetensors")}
    settings = {**to_data(replace(options, model=None)), "model": str(source), "weights": weights}
    watch.on_message(f"decoding {options.rows} passages of {options.tokens} tokens in {len(_cases(options))} ways")
    decoded, machine = measured(folder / "decoded.json", settings, lambda: _decoded(source, options))
    settings = {"steps": options.recurrence_steps, "seeds": options.seeds}
    watch.on_message(f"running a bare recurrence for {options.recurrence_steps} steps in each")
    bare, _ = measured(
        folder / "recurrence.json", settings, lambda: recurrence(_cases(options), options.recurrence_steps)
    )
    here = f"{RUN_HERE.model.pattern}, trained for {options.steps} steps on {', '.join(options.data)}"
    return findings(options, str(options.model or here), decoded, bare, machine)


def findings(
    options: Options, source: str, decoded: dict[str, Any], bare: dict[str, dict[str, float]], machine: str
) -> Findings:
    """What was measured, told.

    Args:
        decoded, bare: what `decode` and `recurrence` gave for `_cases`.
    """
    return Findings(
        title="States of Mamba layers in fewer bits",
        source="Nemotron 3 Super and Ultra, precision of the SSM cache; arXiv 2512.20856",
        setting={
            "model": source,
            "text": f"{options.rows} held-out passages of {options.tokens} tokens, read token by token",
            "recurrence": f"{options.recurrence_steps} tokens",
            "seeds": f"{options.seeds}, of stochastic rounding",
            "computed in": f"fp32 on {machine}",
        },
        tables=[paper_table(decoded), text_table(decoded), recurrence_table(bare)],
        claims=[
            *(stalls(bare, kind) for kind in KINDS),
            free(decoded),
            *(nearer(decoded, kind) for kind in KINDS),
            keys_values(decoded),
        ],
        remarks=[
            "The paper measures accuracy and the length of answers of a model that reasons over tens of thousands of "
            "tokens. A small model gives no such answers: here the loss of held-out text stands for accuracy, and how "
            "the divergence from the FP32 state grows along a passage for what makes answers longer.",
            "Over a short passage whose input changes all the time nearest rounding may well be nearer to FP32: its "
            "single errors are smaller, and it fails only where many small updates have the same sign. "
            "The bare recurrence shows that case.",
        ],
        data={"decoded": decoded, "recurrence": bare},
    )


# Measuring ---------------------------------------------------------------------------------------------------------


def _cases(options: Options) -> dict[str, StateFormats]:
    """Name -> formats; a stochastic one has one name for each seed."""
    cases = {EXACT: StateFormats(), KV: StateFormats(keys_values="fp8"), "bf16": StateFormats(ssm="bf16")}
    for kind in KINDS:
        cases[kind] = StateFormats(ssm=kind)
        for seed in range(options.seeds):
            cases[f"{kind}_sr {seed}"] = StateFormats(ssm=cast(SsmFormat, f"{kind}_sr"), seed=seed)
    return cases


def _trained(options: Options, folder: Path, watch: Observer) -> Path:
    """The folder of a model that learned the text."""
    from seqloom.train.loop import train

    data = replace(RUN_HERE.task.data, sources=tuple(SourceConfig(path=path) for path in options.data))
    steps = replace(RUN_HERE.train, steps=options.steps)
    train(replace(RUN_HERE, task=replace(RUN_HERE.task, data=data), train=steps), folder / "model", watch)
    return folder / "model"


def _decoded(source: Path, options: Options) -> dict[str, Any]:
    from seqloom.numerics.precision import PrecisionConfig, apply_precision
    from seqloom.systems.hybrid_lm.model import HybridLM

    model = load(source)
    if not isinstance(model, HybridLM) or "M" not in model.config.pattern:
        raise ConfigError(f"--model: {source} has no Mamba layer, and this study is about what one remembers")
    apply_precision(model, PrecisionConfig(activations="fp32"))  # so that nothing but the states is rounded
    return decode(model, _passages(source, options, model.vocab_size), _cases(options))


def _passages(source: Path, options: Options, vocab_size: int) -> "Tensor":
    """Held-out text of a run, packed documents read as one text."""
    from seqloom.data.prepare import prepare
    from seqloom.data.rows import NO_DOCUMENT

    if not (source / RUN).exists():
        raise ConfigError(f"--model: {source} has no {RUN} that says which text it did not learn; give a run folder")
    data = parse(Run, read_yaml(source / RUN), str(source / RUN)).task.data
    data = replace(data, phases=(), tokenizer=str(source))
    prepared = prepare(data, vocab_size=vocab_size, sequence_length=options.tokens, rows_total=1, seed=0, progress=None)
    count = min(4 * options.rows, len(prepared.valid))  # some may be filled up
    found = prepared.valid.rows([index * len(prepared.valid) // count for index in range(count)])
    passages = found.tokens[(found.documents != NO_DOCUMENT).all(1)][: options.rows]
    if not len(passages):
        raise DataError(f"{source}: its held-out text has no passage of --tokens {options.tokens}")
    return passages


# The model of this study -------------------------------------------------------------------------------------------


RUN_HERE = text_run(
    "ssm_cache",
    TextTaskConfig,
    HybridConfig(
        pattern="M-M*-M-",
        vocab_size=4096,
        width=128,
        mamba=MambaConfig(heads=8, head_width=32, state_width=128, groups=2, chunk=64),
        attention=AttentionConfig(heads=4, kv_heads=2, head_width=32),
        mlp=MlpConfig(hidden_width=384),
        init_std=0.02,
    ),
    sequence_length=512,
    batch_rows=4,
    steps=200,
)
