"""Processes that train, and the small runs they train."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from distributed.group import Ended, Groups, Order

import micro_runs
from seqloom.core.config import to_yaml
from seqloom.systems.hybrid_lm.config import AttentionConfig, MambaConfig, Run

Go = Callable[..., Ended]


@pytest.fixture(scope="session")
def groups() -> Iterator[Groups]:
    started = Groups()
    yield started
    started.close()


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Every layer kind in sizes that four ranks can share, with both optimizers at work: the first step begins their
    states, the second goes on with them, and the third shows what came of that."""
    run = micro_runs.narrow(micro_runs.write_texts(tmp_path_factory.mktemp("texts") / "corpus"))()
    model = replace(
        run.model,
        mamba=MambaConfig(heads=8, head_width=8, state_width=8, groups=4, chunk=16),
        attention=AttentionConfig(heads=4, kv_heads=2, head_width=16),
        moe=replace(run.model.moe, experts=8, latent_width=24),
    )
    train = replace(
        run.train,
        steps=3,
        save_every=100,
        evaluate_every=3,
        log_every=1,
        device="cpu",
        monitor_every=None,
        schedule=replace(run.train.schedule, warmup_steps=1),
    )
    task = replace(run.task, evaluate_rows=7)  # which no number of ranks divides
    return replace(run, model=model, task=task, train=train, precision=replace(run.precision, activations="fp32"))


@pytest.fixture(scope="session")
def go(groups: Groups, run: Run, tmp_path_factory: pytest.TempPathFactory) -> Go:
    """Train the run, or another one, in a folder with a group of processes."""

    def train(folder: Path, ranks: int, *, of: Run = run, **order: object) -> Ended:
        path = tmp_path_factory.mktemp("run") / "run.yaml"
        path.write_text(to_yaml(of), encoding="utf-8")
        return groups.train(Order(str(path), str(folder), ranks, **order))

    return train
