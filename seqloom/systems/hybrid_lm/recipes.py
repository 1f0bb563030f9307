"""Complete runs by name; a variant calls its parent and replaces fields."""

from collections.abc import Callable

from seqloom.data.config import DataConfig, SourceConfig
from seqloom.systems.hybrid_lm.config import (
    AttentionConfig,
    HybridConfig,
    MambaConfig,
    MlpConfig,
    MoeConfig,
    MtpConfig,
    Run,
    TextTaskConfig,
)
from seqloom.train.config import OptimizerConfig, ScheduleConfig, TrainConfig


def tiny() -> Run:
    """About 5 M parameters with every part of Nemotron 3 Super in small; learns Python in minutes on two cores."""
    model = HybridConfig(
        pattern="M-M*EME",
        vocab_size=4096,
        width=160,
        mamba=MambaConfig(heads=10, head_width=32, state_width=32, groups=2, chunk=64),
        attention=AttentionConfig(heads=4, kv_heads=2, head_width=32),
        mlp=MlpConfig(hidden_width=512),
        moe=MoeConfig(experts=32, top_k=4, expert_width=160, shared_width=256, latent_width=64, routed_scaling=2.5),
        mtp=MtpConfig(),
        init_std=0.02,
    )
    return Run(
        name="tiny",
        model=model,
        task=TextTaskConfig(
            data=DataConfig(sources=(SourceConfig(path="python:stdlib"),)), sequence_length=256, batch_rows=8
        ),
        train=TrainConfig(
            steps=200,
            optimizer=OptimizerConfig(kind="muon", lr=3e-3, muon_lr=0.02),
            schedule=ScheduleConfig(warmup_steps=10, decay_fraction=0.4),
        ),
    )


RECIPES: dict[str, Callable[[], Run]] = {"tiny": tiny}
