"""Which stability methods let training survive larger learning rates?

Instability of large runs is provoked cheaply: a small model is trained at rising learning rates until it diverges, and
a method is the better the further it goes. All runs of one seed see the same batches and begin with the same matrices.
When a run counts as diverged is the business of `stability_sweep.py`.
Paper: "Methods of improving LLM training stability" (arXiv 2410.16682).
"""

import difflib
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from statistics import mean
from typing import Annotated, Any, Literal

from seqloom.core.config import Ge, Gt, config
from seqloom.core.errors import ConfigError
from seqloom.data.config import DataConfig, SourceConfig
from seqloom.nn.stability import METHODS
from seqloom.numerics.precision import PrecisionConfig
from seqloom.studies.output_norms import by_layer_kind
from seqloom.studies.stability_claims import claims, remarks
from seqloom.studies.stability_sweep import Cell, Sweep, end_of_patience
from seqloom.studies.stability_tables import charts, largest, matrix, norms, overhead, quality
from seqloom.studies.study import Findings
from seqloom.studies.trial import Trial, run_trial, stored_trial
from seqloom.systems.hybrid_lm.config import AttentionConfig, HybridConfig, MlpConfig, Run, TextTaskConfig
from seqloom.train.config import OptimizerConfig, ScheduleConfig, TrainConfig
from seqloom.train.observer import Observer

PAPER_METHODS = (
    *("base", "soft_temp", "soft_clip", "soft_cap", "layer_scale", "sigma_reparam"),
    *("qk_norm", "qk_norm_cap", "qkv_norm", "qk_fc_norm"),
)


@config
class Options:
    """Train a small model with every method at rising learning rates, and hold the result against the paper.

    Stopped or out of time, it goes on where it was when started again.

    Example: seqloom study stability --methods base qk_norm --rates 0.01 0.1 --minutes 5
    """

    scale: Literal["laptop", "gpu"] = "laptop"
    """laptop: 2 blocks of width 64, some ten minutes; gpu: 12 blocks of width 512, as far as it comes in 25 minutes."""
    methods: tuple[str, ...] = ()
    """Methods to compare; by default those of the paper (gpu: six of them). Also known: qkv_norm_keep_pre, no_pre,
    z_loss."""
    rates: tuple[Annotated[float, Gt(0)], ...] = ()
    """Peak learning rates; by default six, from a normal one to far too large."""
    seeds: Annotated[int, Ge(1)] | None = None
    """Runs for every method and rate."""
    steps: Annotated[int, Ge(8)] | None = None
    """Length of every run."""
    minutes: Annotated[float, Gt(0)] | None = None
    """Begin no run that would end after so many minutes (gpu: 25 by default); what is missing is left for the next
    time."""


LOOKS = 50
"""How often the monitor looks at a run."""


@dataclass(frozen=True, kw_only=True)
class Scale:
    """A size at which the study can be run.

    Attributes:
        run: everything but method, rate and seed.
        normal_rate: one at which training is far from diverging.
        quality_margin: how far above the plain model a method's loss may be at the normal rate.
        patience: share of the steps that a run may spend above its limit before it is ended; 1 ends none, and keeps
            every final loss for the graded measures.
        minutes: time of one call, unless another one is given; None takes what it needs.
    """

    run: Run
    methods: tuple[str, ...]
    rates: tuple[float, ...]
    normal_rate: float
    seeds: int
    quality_margin: float
    patience: float
    minutes: float | None = None


def study(options: Options, folder: Path, watch: Observer) -> Findings:
    """Train what is missing, as far as the time allows, and judge all that is there.

    Raises:
        ConfigError: an unknown method, or nothing could be trained in the time given.
        Interrupted: finished runs are stored, and the same command goes on.
    """
    scale = SCALES[options.scale]
    sweep = Sweep(
        scale=options.scale,
        methods=_known(options.methods) or scale.methods,
        rates=tuple(sorted(set(options.rates or scale.rates))),
        seeds=options.seeds or scale.seeds,
        run=_shortened(scale.run, options.steps),
        normal_rate=scale.normal_rate,
        quality_margin=scale.quality_margin,
    )
    minutes = options.minutes or scale.minutes
    began, spent = time.monotonic(), list[float]()
    # Seeds outermost: a sweep that was cut short then has all methods and rates once, rather than some of them often.
    plan = [(method, rate, seed) for seed, rate, method in product(range(sweep.seeds), sweep.rates, sweep.methods)]
    for number, (method, rate, seed) in enumerate(plan, start=1):
        run = _cell_run(sweep.run, method, rate, seed)
        path = folder / "trials" / f"{options.scale}-{method}-{rate:g}-{seed}.json"
        trial = stored_trial(run, path)
        if trial is not None:
            sweep.cells.append(Cell(method=method, rate=rate, seed=seed, trial=trial))
            continue
        start = time.monotonic()
        if minutes is not None and start - began + (mean(spent) if spent else 0) > 60 * minutes:
            continue
        trial = _train(run, path, watch, scale.patience, number, len(plan))
        spent.append(time.monotonic() - start)
        sweep.cells.append(Cell(method=method, rate=rate, seed=seed, trial=trial))
        watch.on_message(f"{number}/{len(plan)}  {sweep.cells[-1]}")
    if not sweep.cells:
        raise ConfigError(f"--minutes: {minutes:g} are too few for a single run")
    return findings(sweep)


def findings(sweep: Sweep) -> Findings:
    """What a sweep says, however far it came."""
    return Findings(
        title="Stability methods at rising learning rates",
        source="Methods of improving LLM training stability, arXiv 2410.16682",
        setting=_setting(sweep),
        tables=[matrix(sweep), largest(sweep), quality(sweep), *norms(sweep), overhead(sweep)],
        claims=claims(sweep),
        remarks=remarks(sweep),
        charts=charts(sweep),
        data=_data(sweep),
    )


def _setting(sweep: Sweep) -> dict[str, str]:
    model, task, train = sweep.run.model, sweep.run.task, sweep.run.train
    attention, mlp = model.attention, model.mlp
    assert attention is not None
    assert mlp is not None
    machines = sorted({cell.trial.machine for cell in sweep.cells})
    formats = sorted({str(cell.trial.settings["precision"]["activations"]) for cell in sweep.cells})
    return {
        "scale": sweep.scale,
        "model": f"{len(model.pattern) // 2} blocks of width {model.width}, {attention.heads} heads, MLP "
        f"{mlp.hidden_width}, vocabulary {model.vocab_size}",
        "the paper's": "24 blocks of width 1024, 16 heads, MLP 4096, vocabulary about 256k",
        "text": ", ".join(source.title for source in task.data.sources),
        "step": f"{task.batch_rows} rows of {task.sequence_length} tokens (paper: 512 of 4096)",
        "training": f"{train.steps} steps of AdamW, {train.schedule.warmup_steps} of them warm-up, then cosine to "
        f"{train.schedule.final_factor:.0%}; gradients clipped at {train.clip_norm:g}",
        "computed in": f"{', '.join(formats)} on {', '.join(machines)}",
    }


def _data(sweep: Sweep) -> dict[str, Any]:
    def number(value: float) -> float | None:
        return value if math.isfinite(value) else None

    return {
        "methods": {
            method: {
                "largest_stable_rate": sweep.largest_stable(method),
                "sensitivity": sweep.sensitivity(method),
                "validation_loss_at_normal_rate": sweep.valid(method),
                "step_time_over_base": sweep.slowdown(method),
            }
            for method in sweep.methods
        },
        "runs": [
            {
                "method": cell.method,
                "rate": cell.rate,
                "seed": cell.seed,
                "final_loss": number(cell.final),
                "validation_loss": number(cell.valid),
                "diverged": sweep.divergence(cell),
                "step_seconds": cell.trial.step_seconds,
            }
            for cell in sweep.cells
        ],
    }


def _train(run: Run, path: Path, watch: Observer, patience: float, number: int, total: int) -> Trial:
    steps = run.train.steps

    def judge(losses: list[float]) -> str | None:
        watch.on_prepare(f"{total} runs of {steps} steps", (number - 1 + len(losses) / steps) / total)
        return end_of_patience(losses, steps, patience)

    return run_trial(run, path, watch, judge=judge, watched=by_layer_kind)


def _cell_run(run: Run, method: str, rate: float, seed: int) -> Run:
    return replace(
        run,
        model=replace(run.model, stability=METHODS[method]),
        train=replace(run.train, optimizer=replace(run.train.optimizer, lr=rate)),
        seed=seed,
    )


def _shortened(run: Run, steps: int | None) -> Run:
    if steps is None:
        return run
    schedule = replace(run.train.schedule, warmup_steps=steps // 4)
    train = replace(run.train, steps=steps, schedule=schedule, monitor_every=max(1, steps // LOOKS))
    return replace(run, train=train)


def _known(methods: Sequence[str]) -> tuple[str, ...]:
    for method in methods:
        if method not in METHODS:
            near = difflib.get_close_matches(method, METHODS, n=1)
            hint = f"did you mean '{near[0]}'? " if near else ""
            raise ConfigError(f"--methods: unknown method '{method}'; {hint}known: {', '.join(METHODS)}")
    return tuple(dict.fromkeys(methods))


def _run(
    *, blocks: int, width: int, heads: int, vocab_size: int, sequence_length: int, batch_rows: int, steps: int
) -> Run:
    """A decoder like the paper's: attention and a fourfold squared-ReLU MLP in turn, on Python's own sources."""
    return Run(
        name="stability",
        model=HybridConfig(
            pattern="*-" * blocks,
            vocab_size=vocab_size,
            width=width,
            attention=AttentionConfig(heads=heads, kv_heads=heads, head_width=width // heads),
            mlp=MlpConfig(hidden_width=4 * width),
            norm_eps=1e-8,  # narrow heads without a pre-norm begin with a variance of 1e-5, which no eps may outweigh
            init_std=0.02,
        ),
        task=TextTaskConfig(
            data=DataConfig(sources=(SourceConfig(path="python:stdlib"),)),
            sequence_length=sequence_length,
            batch_rows=batch_rows,
            evaluate_rows=16 * batch_rows,
        ),
        train=TrainConfig(
            steps=steps,
            optimizer=OptimizerConfig(kind="adamw", beta1=0.9, beta2=0.95, weight_decay=0.1),
            schedule=ScheduleConfig(kind="cosine", warmup_steps=steps // 4, final_factor=0.1),
            clip_norm=1.0,
            monitor_every=max(1, steps // LOOKS),
        ),
    )


def _single_thread(run: Run) -> Run:
    """FP32 on one CPU thread, which is the fastest for layers this narrow, and the same numbers on every machine."""
    return replace(
        run, train=replace(run.train, device="cpu", threads=1), precision=PrecisionConfig(activations="fp32")
    )


SCALES = {
    "laptop": Scale(
        run=_single_thread(
            _run(blocks=2, width=64, heads=4, vocab_size=320, sequence_length=64, batch_rows=16, steps=200)
        ),  # bytes, special tokens, and few merges
        methods=PAPER_METHODS,
        rates=(3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0),
        normal_rate=1e-2,
        seeds=1,
        quality_margin=0.05,
        patience=1.0,
    ),
    "gpu": Scale(
        run=_run(blocks=12, width=512, heads=8, vocab_size=4096, sequence_length=1024, batch_rows=16, steps=400),
        methods=("base", "soft_cap", "qk_norm", "qk_norm_cap", "qkv_norm", "qk_fc_norm"),
        rates=(1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1),
        normal_rate=1e-3,
        seeds=1,
        quality_margin=0.01,
        patience=0.1,
        minutes=25,
    ),
}
