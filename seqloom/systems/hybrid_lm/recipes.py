"""Complete runs by name; a variant calls its parent and replaces fields."""

from collections.abc import Callable
from dataclasses import replace

from seqloom.data.config import YOUR_DATA, DataConfig, SourceConfig
from seqloom.systems.hybrid_lm.config import (
    AttentionConfig,
    HybridConfig,
    LoraConfig,
    MambaConfig,
    MlpConfig,
    MoeConfig,
    MtpConfig,
    Run,
    TextTaskConfig,
)
from seqloom.systems.hybrid_lm.published import MODELS
from seqloom.train.config import OptimizerConfig, ScheduleConfig, TrainConfig
from seqloom.train.run import TO_BE_NAMED


def tiny() -> Run:
    """4.5 M parameters with every part of Nemotron 3 Super in small; learns Python in minutes on two cores."""
    model = HybridConfig(
        pattern="M-M*EME",
        vocab_size=4096,
        width=160,
        mamba=MambaConfig(heads=10, head_width=32, state_width=32, groups=2, chunk=64),
        attention=AttentionConfig(heads=4, kv_heads=2, head_width=32),
        mlp=MlpConfig(hidden_width=512),
        moe=MoeConfig(
            experts=32,
            top_k=4,
            expert_width=160,
            shared_width=256,
            latent_width=64,
            routed_scaling=2.5,
            bias_rate=0.01,  # the published 0.001 needs thousands of steps to even out the load
        ),
        mtp=MtpConfig(depth=1),  # at this size a second depth, mostly its head, would slow steps by a quarter
        init_std=0.02,
    )
    return Run(
        name="tiny",
        model=model,
        task=TextTaskConfig(
            data=DataConfig(sources=(SourceConfig(path="python:stdlib"),)), sequence_length=256, batch_rows=8
        ),
        train=TrainConfig(
            steps=240,
            optimizer=OptimizerConfig(kind="muon", lr=6e-3, muon_lr=0.04),
            schedule=ScheduleConfig(warmup_steps=10, decay_fraction=0.4),
            evaluate_every=120,
            save_every=120,
        ),
    )


def small() -> Run:
    """44 M parameters, with the published MTP depth, on the sources of all installed packages: for longer runs."""
    run = tiny()
    model = replace(
        run.model,
        pattern="MEMEM*EMEMEM*EMEME",
        vocab_size=16384,
        width=384,
        mamba=MambaConfig(heads=16, head_width=48, state_width=64, groups=4),
        attention=AttentionConfig(heads=6, kv_heads=2, head_width=64),
        mlp=None,
        moe=MoeConfig(
            experts=64,
            top_k=6,
            expert_width=160,
            shared_width=384,
            latent_width=96,
            routed_scaling=2.5,
            bias_rate=0.003,
        ),
        mtp=MtpConfig(depth=2),
        init_std=0.014,
    )
    return replace(
        run,
        name="small",
        model=model,
        task=TextTaskConfig(
            data=DataConfig(sources=(SourceConfig(path="python:installed"),)),
            sequence_length=1024,
            batch_rows=32,
            micro_rows=8,
        ),
        train=replace(
            run.train,
            steps=3000,
            optimizer=OptimizerConfig(kind="muon", lr=2e-3, muon_lr=0.02),
            schedule=ScheduleConfig(warmup_steps=100),
            evaluate_every=250,
            save_every=250,
        ),
    )


def finetune() -> Run:
    """Adapters on a model folder: --model FOLDER --data conversations.jsonl; settings of the model come from there."""
    return Run(
        name="finetune",
        init_from=TO_BE_NAMED,
        adapter=LoraConfig(),
        model=HybridConfig(pattern="-", vocab_size=8, width=8, mlp=MlpConfig(hidden_width=8)),
        task=TextTaskConfig(
            data=DataConfig(sources=(SourceConfig(path=YOUR_DATA),), form="conversations"),
            sequence_length=1024,
            batch_rows=8,
            micro_rows=1,
        ),
        train=TrainConfig(
            steps=200,
            optimizer=OptimizerConfig(lr=2e-4, weight_decay=0.0),
            schedule=ScheduleConfig(kind="cosine", warmup_steps=10, final_factor=0.1),
            activation_checkpointing=True,
            evaluate_every=50,
            save_every=50,
        ),
    )


def finetune_full() -> Run:
    """All weights of a model folder: as finetune, with sixteen bytes of memory a parameter and small steps."""
    run = finetune()
    optimizer = replace(run.train.optimizer, lr=1e-5, weight_decay=0.1)
    return replace(run, name="finetune_full", adapter=None, train=replace(run.train, optimizer=optimizer))


RECIPES: dict[str, Callable[[], Run]] = {
    "tiny": tiny,
    "small": small,
    "finetune": finetune,
    "finetune_full": finetune_full,
    **MODELS,
}
