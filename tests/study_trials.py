"""For the studies of trained variants: a model of some thousand parameters, and trainings given instead of made."""

from typing import Any

from seqloom.studies.paired import Cell, Paired, PairedOptions
from seqloom.studies.trial import Trial
from seqloom.systems.hybrid_lm.config import AttentionConfig, HybridConfig, MambaConfig, MlpConfig, MoeConfig

NARROW = HybridConfig(
    pattern="M-*-M-",
    vocab_size=320,
    width=32,
    mamba=MambaConfig(heads=4, head_width=16, state_width=8, groups=2, chunk=16),
    attention=AttentionConfig(heads=2, kv_heads=1, head_width=16),
    mlp=MlpConfig(hidden_width=64),
    moe=MoeConfig(experts=8, top_k=2, expert_width=32, shared_width=32, routed_scaling=2.5, bias_rate=0.01),
    init_std=0.02,
)


def trial(bits: float, *, recall: float = 0.0, max_vio: dict[str, float] | None = None) -> Trial:
    """A finished run that ended at so many bits per byte."""
    looks = [{"step": float(step), **max_vio} for step in range(10, 101, 10)] if max_vio else []
    return Trial(
        settings={"precision": {"activations": "fp32"}},
        machine="a machine",
        losses=[5.0, 4.0, 3.0],
        valid={"bits_per_byte": bits, "recall_saved": recall, "recall_accuracy": recall},
        watched=looks,
        step_seconds=0.5,
    )


def paired(room: Any, **trials: list[Trial]) -> Paired:
    """Trainings of a study's laptop scale that are given instead of made; variant -> trial by seed."""
    cells = [
        Cell(variant=variant, seed=seed, trial=one) for variant, each in trials.items() for seed, one in enumerate(each)
    ]
    runs = room.SCALES["laptop"].runs(PairedOptions())
    return Paired(scale="laptop", runs=runs, seeds=max(map(len, trials.values())), cells=cells)
