"""What does not fit is named before anything is allocated, and before processes meet."""

from dataclasses import replace

import pytest
from train.toy import ToyRun

from seqloom.core.errors import ConfigError
from seqloom.nn.stability import Stability
from seqloom.systems.hybrid_lm.config import Run
from seqloom.systems.hybrid_lm.recipes import tiny
from seqloom.train.config import ParallelConfig
from seqloom.train.parallel.mesh import resolve_parallel


def test_data_takes_what_is_left() -> None:
    assert resolve_parallel(ParallelConfig(tensor=2, context=2), 8).data == 2
    assert resolve_parallel(ParallelConfig(), 1).single


@pytest.mark.parametrize(
    ("parallel", "size", "told"),
    [
        (ParallelConfig(tensor=2), 1, r"tensor = 2 do not fit 1 process; .*torchrun --nproc-per-node 2"),
        (ParallelConfig(tensor=2), 3, "tensor = 2 do not fit 3 processes"),
        (ParallelConfig(data=2, context=2), 8, "data = 2, context = 2, tensor = 1 do not fit 8"),
        (ParallelConfig(expert=4), 2, r"expert: 4 does not divide data · context = 2"),
    ],
)
def test_a_grid_must_have_as_many_places_as_processes(parallel: ParallelConfig, size: int, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        resolve_parallel(parallel, size)


@pytest.mark.parametrize(
    ("parallel", "told"),
    [
        (ParallelConfig(data=3), "task.batch_rows = 8 is not divisible by train.parallel.data = 3"),
        (
            ParallelConfig(data=1, context=3),
            "task.sequence_length = 256 is not divisible by train.parallel.context",
        ),
        (ParallelConfig(data=1, context=3), "model.mamba.heads = 10 is not divisible by train.parallel.context"),
        (ParallelConfig(data=1, context=8), "model.attention.heads = 4 is not divisible by train.parallel.context"),
        (ParallelConfig(data=1, tensor=4), "model.mamba.groups = 2 is not divisible by train.parallel.tensor = 4"),
        (
            ParallelConfig(data=1, tensor=4),
            "model.attention.kv_heads = 2 is not divisible by train.parallel.tensor",
        ),
        (
            ParallelConfig(data=1, tensor=3),
            "model.mlp.hidden_width = 512 is not divisible by train.parallel.tensor",
        ),
        (
            ParallelConfig(data=1, tensor=3),
            "model.moe.expert_width = 160 is not divisible by train.parallel.tensor",
        ),
        (ParallelConfig(data=12, expert=12), "model.moe.experts = 32 is not divisible by train.parallel.expert = 12"),
    ],
)
def test_sizes_that_do_not_divide_are_named(parallel: ParallelConfig, told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        tiny().refuse_indivisible(parallel)
    assert told in str(caught.value)


def with_stability(**methods: object) -> Run:
    run = tiny()
    return replace(run, model=replace(run.model, stability=Stability(**methods)))


def test_methods_that_need_whole_matrices_are_named() -> None:
    with pytest.raises(ConfigError, match="sigma_reparam"):
        with_stability(sigma_reparam=True).refuse_indivisible(ParallelConfig(data=2))
    with pytest.raises(ConfigError, match="qk_norm"):
        with_stability(qk_norm=True).refuse_indivisible(ParallelConfig(data=1, tensor=2))
    with_stability(qk_norm=True).refuse_indivisible(ParallelConfig(data=1, context=2))


def test_systems_that_know_nothing_of_it_run_alone() -> None:
    ToyRun().refuse_indivisible(ParallelConfig())
    with pytest.raises(ConfigError, match="'toy' run in one process"):
        ToyRun().refuse_indivisible(ParallelConfig(data=2))
