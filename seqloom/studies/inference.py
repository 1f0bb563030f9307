"""What a hybrid saves while it serves: time of a token and memory by context, and sequences in a budget of memory.

A hybrid and a Transformer of its size stand side by side with random weights, which cost what trained ones cost. What
bytes alone predict stands beside every time (`decoding.py`); how many rows fit and what they write together is
measured by the engine (`cache_budget.py`).
Paper: Nemotron-H (arXiv 2504.03624) and Nemotron Nano 2 (arXiv 2508.14444), sections on throughput.
"""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

from seqloom.core.config import Ge, Gt, config, to_data
from seqloom.core.errors import ConfigError
from seqloom.studies import inference_tables as tables
from seqloom.studies.cache_budget import Load, Served, row_bytes, rows_that_fit, serve
from seqloom.studies.decoding import HYBRID, TRANSFORMER, WIDE, measure, state_bytes
from seqloom.studies.inference_tables import READING, WRITING, Measured
from seqloom.studies.measured import measured
from seqloom.studies.study import Findings
from seqloom.studies.twins import attention_twin
from seqloom.systems.hybrid_lm.budget import budget, state_budget
from seqloom.systems.hybrid_lm.config import AttentionConfig, HybridConfig, MambaConfig, MlpConfig
from seqloom.train.observer import Observer


@config
class Options:
    """Time a hybrid and a Transformer of its size at growing contexts, and serve both from one budget of memory.

    Example: seqloom study inference --contexts 1024 4096 16384 --budget-mib 32
    """

    contexts: tuple[Annotated[int, Ge(1)], ...] = (1024, 4096, 16384, 65536)
    """Tokens that came before the one that is timed."""
    budget_mib: Annotated[float, Gt(0)] = 24.0
    """Memory for keys, values and states of all rows."""
    prompt: Annotated[int, Ge(1)] = 512
    """Tokens read of a request with a long answer; the answer is twice as long. The other load reads and writes as many
    in all, in the ratio of 25 to 1."""
    requests: Annotated[int, Ge(1)] = 24
    """Requests of each load."""


def study(options: Options, folder: Path, watch: Observer) -> Findings:
    """Measure what is missing, and judge it.

    Raises:
        ConfigError: not one sequence fits into the budget.
    """
    contexts, loads = sorted(set(options.contexts)), _loads(options)
    room = int(options.budget_mib * 2**20)
    for load in loads:
        if not rows_that_fit(MODELS[TRANSFORMER], load.tokens, room, 1):
            needed = row_bytes(MODELS[TRANSFORMER], load.tokens) / 2**20
            raise ConfigError(
                f"--budget-mib: {options.budget_mib:g} holds not one sequence of {load.tokens} tokens of the "
                f"Transformer, which takes {needed:.1f}"
            )
    watch.on_message(f"timing a token at {', '.join(map(str, contexts))} tokens of context")
    points, machine = measure(MODELS, contexts, folder / "contexts.json")
    settings = {
        "models": {name: to_data(model) for name, model in MODELS.items()},
        "loads": [asdict(load) for load in loads],
        "bytes": room,
        "requests": options.requests,
    }
    watch.on_message(f"serving {options.requests} requests of {len(loads)} loads from {options.budget_mib:g} MiB each")
    served, _ = measured(folder / "served.json", settings, lambda: serve(MODELS, loads, room, options.requests))
    found = [Served(**each) for each in served]
    return findings(options, Measured(points=points, served=found, machine=machine, crossover=_crossover()))


def findings(options: Options, found: Measured) -> Findings:
    """What was measured, told."""
    sizes = ", ".join(f"{budget(model).parameters / 1e6:.2f} M of {name}" for name, model in MODELS.items())
    return Findings(
        title="What a hybrid saves while it serves",
        source="Nemotron-H, arXiv 2504.03624; Nemotron Nano 2, arXiv 2508.14444: throughput",
        setting={
            "parameters": sizes,
            "layers": ", ".join(f"{model.pattern} ({name})" for name, model in MODELS.items()),
            "budget": f"{options.budget_mib:g} MiB of keys, values and states, {options.requests} requests a load",
            "computed in": f"fp32 on {found.machine}",
        },
        tables=[tables.times(found), tables.memory(found), tables.capacity(found, _loads(options))],
        claims=[
            tables.grows(found),
            tables.predicted(found),
            tables.exact(found),
            tables.batch(found),
            tables.reading(found),
        ],
        remarks=tables.remarks(found),
        charts=tables.charts(found),
        data={"contexts": [asdict(each) for each in found.points], "served": [asdict(each) for each in found.served]},
    )


def _loads(options: Options) -> list[Load]:
    written = max(1, 3 * options.prompt // 26)
    return [
        Load(name=WRITING, prompt=options.prompt, answer=2 * options.prompt),
        Load(name=READING, prompt=3 * options.prompt - written, answer=written),
    ]


def _crossover() -> int:
    """Tokens after which both models remember as much."""
    kv = [state_budget(model).kv_bytes_per_token // 2 * WIDE for model in MODELS.values()]
    return round(state_bytes(MODELS[HYBRID]) / (kv[1] - kv[0]))


# The models --------------------------------------------------------------------------------------------------------


_MODEL = HybridConfig(
    pattern="M-M-M-M*-M-M-M-M-",  # one attention layer where the Transformer has eight
    vocab_size=4096,
    width=256,
    mamba=MambaConfig(heads=16, head_width=32, state_width=32, groups=2, chunk=64),
    attention=AttentionConfig(heads=8, kv_heads=4, head_width=32),
    mlp=MlpConfig(hidden_width=768),
)
MODELS = {HYBRID: _MODEL, TRANSFORMER: attention_twin(_MODEL)}
