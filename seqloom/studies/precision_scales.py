"""At which sizes number formats are compared: the options, the models and the lengths that all such studies share.

The trunk computes in BF16 everywhere: on a processor without units for it the products are made from widened operands,
which gives the same numbers. It learns with AdamW, as the papers' models do, and the branches lie in the decay, where
they found the gap to be largest.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Literal

from seqloom.core.config import Ge, Gt, config
from seqloom.data.config import DataConfig, SourceConfig
from seqloom.numerics.precision import PrecisionConfig
from seqloom.studies.courses import Plan
from seqloom.systems.hybrid_lm.config import (
    AttentionConfig,
    HybridConfig,
    MambaConfig,
    MlpConfig,
    Run,
    TextTaskConfig,
)
from seqloom.train.config import OptimizerConfig, ScheduleConfig, TrainConfig

BF16 = PrecisionConfig(activations="bf16", recipe="bf16")


@config
class PrecisionOptions:
    """What every study of number formats can be told."""

    scale: Literal["laptop", "small", "gpu"] = "laptop"
    """laptop: 2 M parameters, some twenty minutes on two cores; small: 12 M, hours; gpu: 100 M on one GPU, as far as it
    comes in 25 minutes. Stopped or out of time, each goes on where it was."""
    data: tuple[str, ...] = ()
    """Text to learn: files, folders, or a built-in corpus; by default this Python's own sources."""
    seeds: Annotated[int, Ge(1)] | None = None
    """Trunks, each with all branches."""
    steps: Annotated[int, Ge(8)] | None = None
    """Length of the trunk; the branches take its last quarter or so."""
    minutes: Annotated[float, Gt(0)] | None = None
    """Begin no course of training that would end after so many minutes; what is missing is left for the next time."""


@dataclass(frozen=True, kw_only=True)
class Scale:
    """A size at which number formats are compared.

    Attributes:
        run: the trunk, seed and text aside.
        branch_at: share of its steps after which branches begin.
    """

    run: Run
    branch_at: float
    seeds: int = 1
    minutes: float | None = None


def plan(options: PrecisionOptions, recipes: Mapping[str, PrecisionConfig]) -> Plan:
    """Branches of the chosen size, one for each recipe."""
    scale = SCALES[options.scale]
    steps = options.steps or scale.run.train.steps
    schedule = replace(scale.run.train.schedule, warmup_steps=max(1, steps // 20))
    data = scale.run.task.data
    if options.data:
        data = replace(data, sources=tuple(SourceConfig(path=path) for path in options.data))
    run = replace(
        scale.run,
        task=replace(scale.run.task, data=data),
        train=replace(scale.run.train, steps=steps, schedule=schedule),
    )
    return Plan(
        scale=options.scale,
        trunk=run,
        branch_at=min(steps - 1, max(1, round(scale.branch_at * steps))),
        branches={name: replace(run, precision=recipe) for name, recipe in recipes.items()},
        seeds=options.seeds or scale.seeds,
        minutes=options.minutes or scale.minutes,
    )


def _run(model: HybridConfig, *, text: str, rows: int, micro_rows: int, length: int, steps: int, lr: float) -> Run:
    return Run(
        name="precision",
        model=model,
        task=TextTaskConfig(
            data=DataConfig(sources=(SourceConfig(path=text),)),
            sequence_length=length,
            batch_rows=rows,
            micro_rows=micro_rows,
            evaluate_rows=64,
        ),
        train=TrainConfig(
            steps=steps,
            optimizer=OptimizerConfig(lr=lr, beta1=0.9, beta2=0.95, weight_decay=0.1),
            schedule=ScheduleConfig(kind="wsd", warmup_steps=steps // 20, decay_fraction=0.2),
        ),
        precision=BF16,
    )


_LAPTOP = HybridConfig(
    pattern="M-M*-M-M*-M-",
    vocab_size=1024,
    width=128,
    mamba=MambaConfig(heads=8, head_width=32, state_width=32, groups=2, chunk=64),
    attention=AttentionConfig(heads=4, kv_heads=2, head_width=32),
    mlp=MlpConfig(hidden_width=512),
    init_std=0.02,
)
_SMALL = replace(
    _LAPTOP,
    pattern="M-M-M*-M-M-M*-",
    vocab_size=4096,
    width=256,
    mamba=MambaConfig(heads=16, head_width=32, state_width=64, groups=4, chunk=64),
    attention=AttentionConfig(heads=4, kv_heads=2, head_width=64),
    mlp=MlpConfig(hidden_width=1024),
)
_GPU = HybridConfig(
    pattern="M-M-M*-M-M-M*-M-M-",
    vocab_size=16384,
    width=768,
    mamba=MambaConfig(heads=24, head_width=64, state_width=128, groups=4),
    attention=AttentionConfig(heads=12, kv_heads=4, head_width=64),
    mlp=MlpConfig(hidden_width=3072),
)

SCALES = {
    "laptop": Scale(
        run=_run(_LAPTOP, text="python:stdlib", rows=8, micro_rows=8, length=128, steps=650, lr=3e-3),
        branch_at=500 / 650,
    ),
    "small": Scale(
        run=_run(_SMALL, text="python:stdlib", rows=16, micro_rows=16, length=256, steps=2000, lr=2e-3),
        branch_at=0.75,
        seeds=3,
    ),
    "gpu": Scale(
        run=_run(_GPU, text="python:installed", rows=32, micro_rows=16, length=1024, steps=1000, lr=1e-3),
        branch_at=0.7,
        minutes=25,
    ),
}
