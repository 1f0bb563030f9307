"""The published models as recipes: one function a model, read like the tables of the reports.

A recipe holds the exact shapes, and of the pre-training what our settings can say. The original corpora are not
public, so `python:installed` stands in for them until `--data` names yours; runs that were made in FP8 or NVFP4 are
given in BF16; a compressed model has the settings of the model it was cut from. What the sources leave open or
contradict is called unsure where it stands. `seqloom show nemotron3_super` prints what a model costs, on any machine.

Paper: Nemotron-H, Table 1; Nemotron Nano 2; Nemotron 3 white paper, Nano, Super and Ultra reports.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

from seqloom.data.config import DataConfig, SourceConfig
from seqloom.numerics.precision import PrecisionConfig
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
from seqloom.train.config import DecayShape, OptimizerConfig, ScheduleConfig, TrainConfig

VOCABULARY = 131072
SEQUENCE = 8192


class Pretraining(NamedTuple):
    """A main run in the units of the reports: lengths in billions of tokens, batch in sequences."""

    tokens: float
    batch: int
    peak_lr: float
    warmup: float
    decay: float
    shape: DecayShape = "minus_sqrt"


H_8B = Pretraining(15_000, 768, 8e-4, warmup=8.3, decay=3600)  # unsure: all but tokens and batch
H_56B = Pretraining(20_000, 768, 8e-4, warmup=8.3, decay=3600)  # unsure: all but tokens and batch
NANO2 = Pretraining(20_000, 736, 4.5e-4, warmup=8, decay=3600)  # unsure: warm-up, shape; a batch of 768 is also quoted
NANO3 = Pretraining(25_000, 3072, 1e-3, warmup=8.4, decay=5000, shape="cosine")  # unsure: shape
SUPER = Pretraining(25_000, 3072, 4.5e-4, warmup=200, decay=5000)  # 7,947 steps of warm-up; 7,949 are also quoted
ULTRA = Pretraining(20_000, 3072, 2.5e-4, warmup=200, decay=5000)


def nemotron_h_8b() -> Run:
    """Nemotron-H 8B, dense.

    Unsure: initial weights, and the learning rate over the run.
    """
    pattern = "M-M-M-M*-" + 3 * "M-M-M-M-M*-" + "M-M-M-M-M-"
    return _run("nemotron_h_8b", H_8B, _dense(pattern, 4096, heads=32, hidden=21504, mamba=(128, 64, 128)))


def nemotron_h_4b() -> Run:
    """Nemotron-H 4B, dense: the 8B made narrower, then distilled with 380 B tokens."""
    pattern = nemotron_h_8b().model.pattern
    return _run("nemotron_h_4b", H_8B, _dense(pattern, 3072, heads=32, hidden=12288, mamba=(112, 64, 128)))


def nemotron_h_56b() -> Run:
    """Nemotron-H 56B, dense.

    Unsure: initial weights, and the learning rate over the run.
    """
    pattern = "M-M-M-M*-" + 9 * "M-M-M-M-M*-" + "M-M-M-M-M-"
    return _run("nemotron_h_56b", H_56B, _dense(pattern, 8192, heads=64, hidden=32768, mamba=(256, 64, 256)))


def nemotron_h_47b() -> Run:
    """Nemotron-H 47B, dense: the 56B with layers taken out, then distilled with 63 B tokens."""
    pattern = 8 * "M-" + "M*-" + 9 * "M-" + "M*-" + 2 * "M-M-M-M-M*-" + 7 * "M-" + "--MM---M-M*-" + 5 * "M-"
    return _run("nemotron_h_47b", H_56B, _dense(pattern, 8192, heads=64, hidden=30720, mamba=(256, 64, 256)))


def nemotron_nano2_12b() -> Run:
    """Nemotron Nano 2 12B, dense.

    Unsure: initial weights, batch, warm-up and the shape of the decay.
    """
    pattern = 6 * "M-M-M-M*-" + "M-M-M-M-"
    return _run("nemotron_nano2_12b", NANO2, _dense(pattern, 5120, heads=40, hidden=20480, mamba=(128, 80, 128)))


def nemotron_nano2_9b() -> Run:
    """Nemotron Nano 2 9B, dense: the 12B compressed to serve 128k tokens on a card of 22 GiB."""
    pattern = "M-M-M-MM-M-M-M*-" + "M-M-M*-" + 2 * "M-M-M-M*-" + "M-MM-M-M-M-M-M-"
    return _run("nemotron_nano2_9b", NANO2, _dense(pattern, 4480, heads=40, hidden=15680, mamba=(128, 80, 128)))


def nemotron3_nano_4b() -> Run:
    """Nemotron 3 Nano 4B, dense and compressed.

    Unsure: the whole training; the settings are those of Nano 2.
    """
    pattern = "M-M-M-MM-M-M*-" + "M-M*-" + "M-M-M*-" + "M-M-MM*-" + "MMM-M-M-"
    model = _dense(pattern, 3136, heads=40, hidden=12544, mamba=(96, 80, 128), chunk=256)
    return _run("nemotron3_nano_4b", NANO2, model)


def nemotron3_nano() -> Run:
    """Nemotron 3 Nano 30B-A3B, mixture of experts.

    Unsure: the shape of the decay.
    """
    pattern = 5 * "MEMEM*E" + "MEMEMEM*E" + 4 * "ME"
    moe = MoeConfig(experts=128, top_k=6, expert_width=1856, shared_width=3712, routed_scaling=2.5)
    return _run("nemotron3_nano", NANO3, _sparse(pattern, 2688, heads=32, mamba=(64, 64, 128), moe=moe, std=0.0173))


def nemotron35_lightning() -> Run:
    """Nemotron 3.5 Lightning: 3 Nano with a prediction block.

    Unsure: the training, apart from the prediction block; the settings are those of 3 Nano.
    """
    model = replace(nemotron3_nano().model, mtp=MtpConfig(depth=2, loss_weight=0.3))
    return _run("nemotron35_lightning", NANO3, model)


def nemotron3_super() -> Run:
    """Nemotron 3 Super 120B-A12B, latent mixture of experts with a prediction block."""
    pattern = 3 * "MEMEMEM*E" + 4 * "MEMEMEMEM*E" + "MEMEMEM*E" + 4 * "ME"
    moe = MoeConfig(experts=512, top_k=22, expert_width=2688, shared_width=5376, latent_width=1024, routed_scaling=5.0)
    model = _sparse(pattern, 4096, heads=32, mamba=(128, 64, 128), moe=moe, std=0.014)
    return _run("nemotron3_super", SUPER, replace(model, mtp=MtpConfig(depth=2, loss_weight=0.3)))


def nemotron3_ultra() -> Run:
    """Nemotron 3 Ultra 550B-A55B, latent mixture of experts with a prediction block.

    Unsure: the routed scaling of 5.0, which is Super's.
    """
    pattern = 3 * "ME" + 4 * "M*EMEMEM*EMEMEMEM*EMEMEME" + "ME"
    moe = MoeConfig(experts=512, top_k=22, expert_width=5120, shared_width=10240, latent_width=2048, routed_scaling=5.0)
    model = _sparse(pattern, 8192, heads=64, mamba=(256, 64, 128), moe=moe, std=0.014)
    return _run("nemotron3_ultra", ULTRA, replace(model, mtp=MtpConfig(depth=2, loss_weight=0.1)))


MODELS: dict[str, Callable[[], Run]] = {
    "nemotron_h_4b": nemotron_h_4b,
    "nemotron_h_8b": nemotron_h_8b,
    "nemotron_h_47b": nemotron_h_47b,
    "nemotron_h_56b": nemotron_h_56b,
    "nemotron_nano2_9b": nemotron_nano2_9b,
    "nemotron_nano2_12b": nemotron_nano2_12b,
    "nemotron3_nano_4b": nemotron3_nano_4b,
    "nemotron3_nano": nemotron3_nano,
    "nemotron3_super": nemotron3_super,
    "nemotron3_ultra": nemotron3_ultra,
    "nemotron35_lightning": nemotron35_lightning,
}


def _dense(
    pattern: str, width: int, *, heads: int, hidden: int, mamba: tuple[int, int, int], chunk: int = 128
) -> HybridConfig:
    """Mamba-2, attention and MLP layers; `mamba` is heads, head width, state width."""
    return HybridConfig(
        pattern=pattern,
        vocab_size=VOCABULARY,
        width=width,
        mamba=MambaConfig(heads=mamba[0], head_width=mamba[1], state_width=mamba[2], chunk=chunk),
        attention=AttentionConfig(heads=heads, kv_heads=8),
        mlp=MlpConfig(hidden_width=hidden),
        init_std=0.02,
    )


def _sparse(
    pattern: str, width: int, *, heads: int, mamba: tuple[int, int, int], moe: MoeConfig, std: float
) -> HybridConfig:
    """Mamba-2, attention and mixture-of-experts layers; `mamba` is heads, head width, state width."""
    return HybridConfig(
        pattern=pattern,
        vocab_size=VOCABULARY,
        width=width,
        mamba=MambaConfig(heads=mamba[0], head_width=mamba[1], state_width=mamba[2]),
        attention=AttentionConfig(heads=heads, kv_heads=2),
        moe=moe,
        init_std=std,
    )


def _run(name: str, main: Pretraining, model: HybridConfig) -> Run:
    """A model with its main run; the learning rate falls to a hundredth of its peak in all of them."""
    steps = 1e9 / (main.batch * SEQUENCE)  # per billion tokens
    return Run(
        name=name,
        model=model,
        task=TextTaskConfig(
            data=DataConfig(sources=(SourceConfig(path="python:installed"),)),
            sequence_length=SEQUENCE,
            batch_rows=main.batch,
            micro_rows=1,
        ),
        train=TrainConfig(
            steps=round(main.tokens * steps),
            optimizer=OptimizerConfig(kind="adamw", lr=main.peak_lr, beta1=0.9, beta2=0.95, weight_decay=0.1),
            schedule=ScheduleConfig(
                kind="wsd",
                warmup_steps=round(main.warmup * steps),
                decay_fraction=main.decay / main.tokens,
                decay_shape=main.shape,
                final_factor=0.01,
            ),
            clip_norm=1.0,
            evaluate_every=2000,
            save_every=2000,
        ),
        precision=PrecisionConfig(activations="bf16"),
    )
