"""The hybrids that are measured, and what a step or a token of them must cost at least.

Multiplications and additions of a training step:  3 · tokens · (2 · matrices touched + scan + attention), with the scan
at its chunk as in `hybrid_lm/budget.py` and attention over half the row, 2 · T · heads · head_width.
Memory traffic of a decoding step: every weight that is touched once, and what is remembered of every row once.
"""

from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from seqloom.numerics.precision import PrecisionConfig, apply_precision
from seqloom.systems.hybrid_lm.budget import budget, state_budget
from seqloom.systems.hybrid_lm.config import AttentionConfig, HybridConfig, MambaConfig, MlpConfig
from seqloom.systems.hybrid_lm.model import HybridLM
from seqloom.systems.hybrid_lm.recipes import tiny

SIZES = {
    "30m": HybridConfig(
        pattern="M-M-M*-M-M-M*-",
        vocab_size=16384,
        width=384,
        mamba=MambaConfig(heads=12, head_width=64, state_width=64, groups=2),
        attention=AttentionConfig(heads=6, kv_heads=2, head_width=64),
        mlp=MlpConfig(hidden_width=1536),
    ),
    "150m": HybridConfig(
        pattern="M-M-M*-M-M-M*-M-M-M*-",
        vocab_size=32768,
        width=768,
        mamba=MambaConfig(heads=24, head_width=64, state_width=128, groups=4),
        attention=AttentionConfig(heads=12, kv_heads=4, head_width=64),
        mlp=MlpConfig(hidden_width=3072),
    ),
    "moe": replace(tiny().model, mtp=None),  # transformers has no prediction block
    "toy": HybridConfig(
        pattern="M*-",
        vocab_size=512,
        width=32,
        mamba=MambaConfig(heads=4, head_width=16, state_width=16, groups=2, chunk=32),
        attention=AttentionConfig(heads=2, kv_heads=1, head_width=16),
        mlp=MlpConfig(hidden_width=64),
    ),
}
"""Name -> shapes."""

TOY = "toy"
"""Shows in a second that a benchmark works, and is measured only where it is named."""


def build(config: HybridConfig, format: str) -> HybridLM:
    """A model with lively weights, in the number format that its folder or its training would give it."""
    torch.manual_seed(0)
    model = config.build()
    enliven(model)
    apply_precision(model, PrecisionConfig(activations=format))  # type: ignore[arg-type]
    return model


@torch.no_grad()
def enliven(model: nn.Module) -> None:
    """Weights under which every part moves the result.

    As a model is initialised the scan adds a millionth of the rest, and a wrong one would pass the gate.
    """
    for name, parameter in model.named_parameters():
        leaf = name.rsplit(".", 1)[-1]
        if leaf == "A_log":
            parameter.uniform_(1, 4).log_()
        elif leaf == "dt_bias":
            parameter.normal_(-1.5, 1.0)
        elif "conv1d" in name:
            parameter.normal_(0.0, 0.5)
        elif parameter.ndim > 1 and "embeddings" not in name:
            parameter.normal_(0.0, parameter.shape[-1] ** -0.5)


def write(config: HybridConfig, format: str, folder: Path) -> Path:
    """A model folder with its weights in a number format, as ours and peers open it."""
    from seqloom.systems.hybrid_lm.convert import convert

    wide = folder / "fp32"
    if not wide.exists():
        wide.mkdir(parents=True)
        build(config, "fp32").write_folder(wide)
    if format == "fp32":
        return wide
    narrow = folder / "bf16"
    convert(wide, narrow, dtype="bf16")
    return narrow


def parameters(config: HybridConfig) -> int:
    return budget(config).parameters


def training_flops(config: HybridConfig, rows: int, length: int) -> float:
    """Of forward and backward pass of one step."""
    return 3 * rows * length * (budget(config).flops_per_token + _attention_flops(config, length / 2))


def prefill_flops(config: HybridConfig, length: int) -> float:
    """Of reading one row; only its last token goes through the head."""
    head = 2 * config.vocab_size * config.width
    return length * (budget(config).flops_per_token - head + _attention_flops(config, length / 2)) + head


def decoding_bytes(config: HybridConfig, format: str, rows: int, context: int) -> float:
    """Least memory traffic of a step that gives every row one token: weights, keys and values, and states both ways.

    Of experts, those that so many rows touch if they spread evenly.
    """
    wide = 2 if format == "bf16" else 4
    cost, state = budget(config), state_budget(config)
    weights = cost.parameters - config.vocab_size * config.width  # of the embedding table a row or two
    if config.moe is not None:
        idle = weights - cost.active_with_head  # what one row leaves alone, and another row with chance 1 - top-k / E
        weights -= round(idle * (1 - config.moe.top_k / config.moe.experts) ** (rows - 1))
    remembered = state.kv_bytes_per_token // 2 * wide * context + 2 * state.ssm_bytes
    return wide * weights + rows * remembered


def _attention_flops(config: HybridConfig, context: float) -> float:
    """Of one token that sees so many, over all layers."""
    if config.attention is None:
        return 0.0
    return config.pattern.count("*") * 4 * context * config.attention.heads * config.attention.head_width
