"""Studies that take seconds: narrow models on small generated texts."""

from dataclasses import replace
from pathlib import Path

import pytest

from micro_runs import write_texts
from seqloom.data.config import SourceConfig
from seqloom.numerics.precision import PrecisionConfig
from seqloom.studies import balancing, hybrid, latent_moe, stability
from seqloom.studies.paired import Scale
from seqloom.systems.hybrid_lm.config import AttentionConfig, MlpConfig, Run
from study_trials import NARROW


@pytest.fixture(scope="session")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_texts(tmp_path_factory.mktemp("study") / "texts")


@pytest.fixture
def narrow_twins(monkeypatch: pytest.MonkeyPatch) -> None:
    """`--scale laptop` of the studies of trained variants, on one thread."""
    experts = replace(NARROW, pattern="ME*E", mlp=None)
    for room, model in ((hybrid, NARROW), (latent_moe, experts), (balancing, experts)):
        scale: Scale = room.SCALES["laptop"]
        data = replace(scale.run.task.data, valid_fraction=0.2)
        task = replace(scale.run.task, data=data, sequence_length=32, batch_rows=4, micro_rows=None, evaluate_rows=8)
        train = replace(scale.run.train, device="cpu", threads=1)
        run = replace(scale.run, task=task, train=train, precision=PrecisionConfig(activations="fp32"))
        monkeypatch.setitem(room.SCALES, "laptop", replace(scale, models=room.variants(model), run=run))


@pytest.fixture(scope="session")
def narrow_run(texts: Path) -> Run:
    run = stability.SCALES["laptop"].run
    data = replace(run.task.data, sources=(SourceConfig(path=str(texts)),), valid_fraction=0.2)
    return replace(
        run,
        model=replace(
            run.model,
            pattern="*-",
            width=16,
            attention=AttentionConfig(heads=2, kv_heads=2, head_width=8),
            mlp=MlpConfig(hidden_width=16),
        ),
        task=replace(run.task, data=data, sequence_length=16, batch_rows=4, evaluate_rows=4),
        train=replace(run.train, steps=8, monitor_every=1, schedule=replace(run.train.schedule, warmup_steps=2)),
    )


@pytest.fixture
def narrow_scale(narrow_run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """`--scale laptop` is the narrow run."""
    scale = replace(stability.SCALES["laptop"], run=narrow_run, rates=(0.01, 0.3), methods=("base", "qk_norm"))
    monkeypatch.setitem(stability.SCALES, "laptop", scale)
