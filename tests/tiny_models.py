"""Small hybrid models in which every path matters: odd sizes, two groups, fewer key-value heads than heads, a query
width unlike the model width, a latent width unlike both; and weights excited enough that a wrong scan shows."""

import dataclasses

import torch
from torch import nn

from seqloom.nn.layer import Memory
from seqloom.nn.sigma_reparam import advance
from seqloom.numerics.precision import dtype_of
from seqloom.systems.hybrid_lm.config import (
    AttentionConfig,
    HybridConfig,
    MambaConfig,
    MlpConfig,
    MoeConfig,
    MtpConfig,
)
from seqloom.systems.hybrid_lm.model import HybridLM

BASE = HybridConfig(
    pattern="M-M*-M-",
    vocab_size=256,
    width=64,
    mamba=MambaConfig(heads=8, head_width=16, state_width=16, groups=2, chunk=16),
    attention=AttentionConfig(heads=4, kv_heads=2, head_width=16),
    mlp=MlpConfig(hidden_width=128),
    moe=MoeConfig(experts=8, top_k=2, expert_width=32, shared_width=48, routed_scaling=2.5),
    init_std=0.02,
)
LATENT = dataclasses.replace(BASE.moe, latent_width=24)

VARIANTS = {
    "dense": BASE,
    "moe": dataclasses.replace(BASE, pattern="MEM*EME"),
    "latent": dataclasses.replace(BASE, pattern="MEM*EME", moe=LATENT),
    "grouped": dataclasses.replace(
        BASE, pattern="MEM*EME", moe=dataclasses.replace(LATENT, expert_groups=4, top_groups=2)
    ),
    "wide_attention": dataclasses.replace(
        BASE, pattern="M*-M*-", attention=AttentionConfig(heads=4, kv_heads=2, head_width=32)
    ),
    "one_group": dataclasses.replace(
        BASE, pattern="MM*M-", mamba=MambaConfig(heads=8, head_width=16, state_width=16, groups=1, chunk=16)
    ),
    "mtp": dataclasses.replace(BASE, pattern="MEM*EME", moe=LATENT, mtp=MtpConfig()),
}


def make(name: str, seed: int = 0, **changes: object) -> HybridLM:
    """An excited model of a variant, in evaluation mode."""
    torch.manual_seed(seed)
    model = HybridLM(dataclasses.replace(VARIANTS[name], **changes))
    return excite(model).eval()


@torch.no_grad()
def excite(module: nn.Module, seed: int = 7) -> nn.Module:
    """Weights under which the SSM term, the router bias, every norm and every tap move the result.

    Under default initialisation the SSM term is a millionth of the rest, so tests would pass with a wrong scan.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(tensor: torch.Tensor, mean: float, std: float) -> None:
        tensor.copy_(mean + std * torch.randn(tensor.shape, generator=generator))

    for name, parameter in module.named_parameters():
        leaf = name.rsplit(".", 1)[-1]
        if "conv1d" in name:
            normal(parameter, 0.0, 0.5 if leaf == "weight" else 0.2)
        elif leaf == "A_log":
            parameter.copy_(torch.log(1 + 3 * torch.rand(parameter.shape, generator=generator)))
        elif leaf == "dt_bias":
            normal(parameter, -1.5, 1.0)
        elif leaf == "D":
            normal(parameter, 1.0, 0.3)
        elif "norm" in name or leaf in ("gain", "layer_scale"):
            normal(parameter, 1.0, 0.2)
        elif "embeddings" in name:
            normal(parameter, 0.0, 1.0)
        else:
            normal(parameter, 0.0, parameter.shape[-1] ** -0.5)
    for name, buffer in module.named_buffers():
        if name.endswith("e_score_correction_bias"):
            normal(buffer, 0.0, 0.3)
        elif name.endswith(".u"):
            normal(buffer, 0.0, 1.0)
    for _ in range(20):
        advance(module)  # the singular vectors follow their new matrices
    return module


def tokens(batch: int = 2, length: int = 40, seed: int = 1) -> torch.Tensor:
    """Random token ids clear of pad, bos and eos."""
    return torch.randint(3, 256, (batch, length), generator=torch.Generator().manual_seed(seed))


class Nothing:
    """A tokenizer for token ids that are never shown."""

    bos, eos, size = 1, 2, 256

    def encode(self, text):
        return []

    def decode(self, ids):
        return ""


def draft_states(model: HybridLM, batch: int) -> list[Memory | None]:
    """Empty memory of the prediction block alone, for `draft`."""
    dtype = dtype_of(model.format)
    return [layer.new_state(batch, dtype, model.mtp.state_formats) for layer in model.mtp.layers]
