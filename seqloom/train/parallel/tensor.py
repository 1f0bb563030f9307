"""Tensor parallel: every matrix of a mixer is cut, so that one token's arithmetic is shared by several ranks.

    in     rows of the input projections       each rank its own heads, groups, hidden units
    out    columns of the output projection    y = Σ over ranks of W_out[:, mine] (what mine gave)

So a mixer communicates twice: its input's gradient and its output are sums over the ranks. Everything between is
the module's own code, which only sees fewer heads. Norms before the mixers, router, latent projections, embedding and
head are the same on every rank and computed by all of them.
Paper: Megatron-LM, arXiv 1909.08053; for Mamba-2 the heads and groups are what is cut (Mamba-2, section 8).
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Replicate

from seqloom.core.distributed import Axis
from seqloom.nn.attention import Attention
from seqloom.nn.mamba2 import Mamba2
from seqloom.nn.mlp import Mlp
from seqloom.nn.moe import Experts
from seqloom.train.parallel.cut import Cut, Cuts, deal


def cut_mixers(model: nn.Module, axis: Axis, cuts: Cuts) -> None:
    """Leave every mixer of a model with this rank's share; sizes must divide."""
    for name, module in list(model.named_modules()):
        if isinstance(module, Mamba2):
            _cut_mamba(model, name, module, axis, cuts)
        elif isinstance(module, Attention):
            _cut_attention(model, name, module, axis, cuts)
        elif isinstance(module, Mlp):
            cuts.make(model, f"{name}.up_proj", "weight", Cut(axis, 0))
            cuts.make(model, f"{name}.down_proj", "weight", Cut(axis, 1))
        elif isinstance(module, Experts):
            cuts.make(model, name, "up_proj", Cut(axis, 1))
            cuts.make(model, name, "down_proj", Cut(axis, 2))
        else:
            continue
        _surround(module, axis.mesh)


def _cut_attention(model: nn.Module, name: str, module: Attention, axis: Axis, cuts: Cuts) -> None:
    for projection in ("q_proj", "k_proj", "v_proj"):
        cuts.make(model, f"{name}.{projection}", "weight", Cut(axis, 0))
    cuts.make(model, f"{name}.o_proj", "weight", Cut(axis, 1))
    module.heads //= axis.count
    module.kv_heads //= axis.count


def _cut_mamba(model: nn.Module, name: str, module: Mamba2, axis: Axis, cuts: Cuts) -> None:
    inner, shared, heads = module.inner, module.groups * module.state_width, module.heads
    rows = Cut(axis, 0, deal([inner, inner, shared, shared, heads], axis.count))
    channels = Cut(axis, 0, deal([inner, shared, shared], axis.count))
    cuts.make(model, f"{name}.in_proj", "weight", rows)
    cuts.make(model, f"{name}.conv1d", "weight", channels)
    cuts.make(model, f"{name}.conv1d", "bias", channels)
    for leaf in ("A_log", "D", "dt_bias"):
        cuts.make(model, name, leaf, Cut(axis, 0))
    cuts.make(model, f"{name}.norm", "weight", Cut(axis, 0))
    cuts.make(model, f"{name}.out_proj", "weight", Cut(axis, 1))
    module.heads //= axis.count
    module.groups //= axis.count
    module.norm.groups //= axis.count
    module.inner //= axis.count
    module.conv_channels //= axis.count


def _surround(module: nn.Module, mesh: DeviceMesh) -> None:
    """Sum the gradients of what goes into a module, and what comes out of it, over the ranks."""

    def enter(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(_shared(x, mesh) if torch.is_tensor(x) and x.is_floating_point() else x for x in inputs)

    def leave(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        part = DTensor.from_local(output, mesh, [Partial()], run_check=False)
        return part.redistribute(mesh, [Replicate()]).to_local()

    module.register_forward_pre_hook(enter)
    module.register_forward_hook(leave)


def _shared(x: Tensor, mesh: DeviceMesh) -> Tensor:
    """The same tensor, whose gradient is the sum of all ranks'."""
    return DTensor.from_local(x, mesh, [Replicate()], run_check=False).to_local(grad_placements=[Partial()])
