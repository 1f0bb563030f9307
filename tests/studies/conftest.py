"""A stability study that takes seconds: a narrow model on small generated texts."""

from dataclasses import replace

import pytest

from micro_runs import write_texts
from seqloom.data.config import SourceConfig
from seqloom.studies import stability
from seqloom.systems.hybrid_lm.config import AttentionConfig, MlpConfig, Run


@pytest.fixture(scope="session")
def narrow_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    run = stability.SCALES["laptop"].run
    texts = write_texts(tmp_path_factory.mktemp("study") / "texts")
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
