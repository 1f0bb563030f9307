"""Low-rank adapters: a frozen matrix W acts as W + c B A, and only the thin A [R, in] and B [out, R] learn.

    y = x W^T + c (dropout(x) A^T) B^T,     c = α / R, or α / √R when rank-stabilised

B starts at zero, so training begins at the base model bit for bit. Adapters sit in place of the projections they adapt
and keep the names of the base parameters; A and B stand beside `weight`. The routed experts' stacked matrices get one
pair of factors per expert. Everything else is frozen: norms, router, taps, A, D, dt, embedding and head.

Whether an adapter reaches every kind of layer is counted, since an attention-only choice leaves 9 of 10 layers of a
hybrid stack untouched and looks healthy all the same.
Paper: LoRA, arXiv 2106.09685; rank-stabilised scale, arXiv 2312.03732.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from seqloom.nn.attention import Attention
from seqloom.nn.layer import Layer
from seqloom.nn.linear import Linear
from seqloom.nn.mamba2 import Mamba2
from seqloom.nn.mlp import Mlp
from seqloom.nn.moe import Experts, MoE
from seqloom.nn.mtp import MtpBlock
from seqloom.numerics.precision import dtype_of
from seqloom.ops.adapted_experts import LowRank, adapted_experts

MTP = "mtp"
"""Kind of every projection of the prediction block; the others are letters of the pattern."""


@dataclass(frozen=True)
class Factors:
    """What all adapters of a model share."""

    rank: int
    scale: float
    dropout: float = 0.0


class Projection(NamedTuple):
    """A matrix, or a stack of them, that can be adapted.

    Attributes:
        kind: letter of its layer, or "mtp".
        layer: name of its layer, or of the prediction block, which counts as one.
        copies: experts in a stack, 1 for a plain matrix.
        routed: belongs to the routed experts.
    """

    kind: str
    layer: str
    out_width: int
    in_width: int
    copies: int = 1
    routed: bool = False

    def factor_numbers(self, rank: int) -> int:
        """Numbers in A and B of all copies."""
        return self.copies * rank * (self.in_width + self.out_width)


class AdaptedLinear(Linear):
    """A linear layer with an adapter; its base weight is the very parameter it took over."""

    hidden_matrices: tuple[str, ...] = ()
    low_bit = False

    def __init__(self, base: Linear, factors: Factors) -> None:
        nn.Module.__init__(self)
        out_width, in_width = base.weight.shape
        self.weight, self.residual_output, self.format = base.weight, base.residual_output, base.format
        self.scale, self.dropout = factors.scale, factors.dropout
        device = base.weight.device
        self.lora_a = nn.Parameter(torch.empty(factors.rank, in_width, device=device))
        self.lora_b = nn.Parameter(torch.zeros(out_width, factors.rank, device=device))
        _initialise(self.lora_a)

    def forward(self, x: Float[Tensor, "*B I"]) -> Float[Tensor, "*B O"]:
        y = super().forward(x)
        narrow = F.linear(F.dropout(x.to(y.dtype), self.dropout, self.training), self.lora_a.to(y.dtype))
        return torch.add(y, F.linear(narrow, self.lora_b.to(y.dtype)), alpha=self.scale)


class AdaptedExperts(Experts):
    """Routed experts of which one or both stacks carry adapters."""

    hidden_matrices: tuple[str, ...] = ()
    low_bit = False

    def __init__(self, base: Experts, stacks: Iterable[str], factors: Factors) -> None:
        """
        Args:
            stacks: which get adapters, of "up_proj" and "down_proj".
        """
        nn.Module.__init__(self)
        self.up_proj, self.down_proj, self.format, self.scale = base.up_proj, base.down_proj, base.format, factors.scale
        for stack in ("up_proj", "down_proj"):
            copies, out_width, in_width = getattr(base, stack).shape
            rank = factors.rank if stack in stacks else 0
            device = base.up_proj.device
            a, b = (
                torch.empty(copies, rank, in_width, device=device),
                torch.zeros(copies, out_width, rank, device=device),
            )
            if rank:
                _initialise(a)
                setattr(self, f"{stack}_lora_a", nn.Parameter(a))
                setattr(self, f"{stack}_lora_b", nn.Parameter(b))
            else:
                self.register_buffer(f"{stack}_lora_a", a, persistent=False)
                self.register_buffer(f"{stack}_lora_b", b, persistent=False)

    def adapter(self, stack: str) -> LowRank:
        """The factors of one stack; of rank 0 where it has no adapter."""
        return LowRank(getattr(self, f"{stack}_lora_a"), getattr(self, f"{stack}_lora_b"))

    def forward(
        self, x: Float[Tensor, "S I"], chosen: Int[Tensor, "S J"], weights: Float[Tensor, "S J"]
    ) -> Float[Tensor, "S I"]:
        dtype = dtype_of(self.format)
        up, down = (
            LowRank(*(factor.to(dtype) for factor in self.adapter(stack))) for stack in ("up_proj", "down_proj")
        )
        return adapted_experts(
            x.to(dtype), chosen, weights, self.up_proj.detach(), self.down_proj.detach(), up, down, self.scale
        )


def projections(model: nn.Module) -> dict[str, Projection]:
    """Everything in the layers of a model that can be adapted, by name, in module order."""
    blocks = [name for name, module in model.named_modules() if isinstance(module, MtpBlock)]
    found: dict[str, Projection] = {}
    for layer_name, layer in model.named_modules():
        if not isinstance(layer, Layer):
            continue
        kind, home = _letter(layer), layer_name
        for block in blocks:
            if layer_name.startswith(f"{block}."):
                kind, home = MTP, block
        for name, module in layer.named_modules(prefix=layer_name):
            if isinstance(module, Linear):
                found[name] = Projection(kind, home, *module.weight.shape)
            elif isinstance(module, Experts):
                for stack in ("up_proj", "down_proj"):
                    copies, out_width, in_width = getattr(module, stack).shape
                    found[f"{name}.{stack}"] = Projection(kind, home, out_width, in_width, copies, routed=True)
    return found


def attach(model: nn.Module, names: Iterable[str], factors: Factors) -> None:
    """Freeze a model and give the named projections fresh adapters, drawn from torch's global generator."""
    model.requires_grad_(False)
    known, wanted = projections(model), set(names)
    leaves: dict[str, list[str]] = {}  # by module, in module order: draws do not depend on the order of the names
    for name in known:
        if name in wanted:
            home, _, leaf = name.rpartition(".")
            leaves.setdefault(home if known[name].routed else name, []).append(leaf)
    for home, stacks in leaves.items():
        parent, _, attribute = home.rpartition(".")
        module = model.get_submodule(home)
        if isinstance(module, Experts):
            adapted: nn.Module = AdaptedExperts(module, stacks, factors)
        else:
            assert isinstance(module, Linear)
            adapted = AdaptedLinear(module, factors)
        setattr(model.get_submodule(parent), attribute, adapted)


def _letter(layer: Layer) -> str:
    return {Mamba2: "M", Attention: "*", Mlp: "-", MoE: "E"}[type(layer.mixer)]


def _initialise(a: Tensor) -> None:
    """Uniform in ±1/√in, as a linear layer of PyTorch begins."""
    bound = a.shape[-1] ** -0.5
    nn.init.uniform_(a, -bound, bound)
