"""Mixture of experts with a sigmoid router, plain or latent.

    p = sigmoid(W_g x)                      in FP32, one score per expert
    chosen = top-k of p + bias              the bias selects and never scales
    w = p[chosen] / Σ p[chosen] · scaling
    y = fc2( Σ_e w_e down_e relu(up_e fc1(x))² ) + shared(x)

Without a latent width fc1 and fc2 are absent. With it (LatentMoE) only the routed experts run in the narrow width:
router and shared expert see the full one, and fc2 runs once, after the weighted sum.

Balance (auxiliary-loss-free): after each optimizer step the bias of every expert moves by `rate` towards the mean
load, counted over the whole global batch; a small sequence-wise loss helps within rows.
Paper: Nemotron 3 Nano and Super, MoE sections; LatentMoE, arXiv 2601.18089.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from seqloom.nn.linear import Linear
from seqloom.nn.mlp import Mlp
from seqloom.numerics.place import Place
from seqloom.numerics.precision import Format, dtype_of
from seqloom.numerics.recipes import Products
from seqloom.ops import kernels
from seqloom.ops.best_experts import best_experts
from seqloom.ops.experts import experts
from seqloom.ops.linear import linear
from seqloom.ops.quantized_experts import quantized_experts
from seqloom.ops.rowwise import rowwise


class Routing(NamedTuple):
    """What the router of one layer did with a batch.

    Attributes:
        router: the router itself, whose `load` the training task adds the counts to.
        balance: differentiable balance loss, summed over rows, each weighted by its tokens; 1 per token when even.
        counts: tokens sent to each expert.
    """

    router: "Router"
    balance: Float[Tensor, ""]
    counts: Int[Tensor, "E"]


class Router(nn.Module):
    """Scores every expert for every token in FP32, whatever the model computes in."""

    e_score_correction_bias: Tensor
    load: Tensor

    def __init__(
        self, width: int, experts: int, top_k: int, scaling: float, normalize: bool, expert_groups: int, top_groups: int
    ) -> None:
        super().__init__()
        self.experts, self.top_k, self.scaling, self.normalize = experts, top_k, scaling, normalize
        self.expert_groups, self.top_groups = expert_groups, top_groups
        self.weight = nn.Parameter(torch.empty(experts, width))
        self.register_buffer("e_score_correction_bias", torch.zeros(experts))
        self.register_buffer("load", torch.zeros(experts, dtype=torch.int64), persistent=False)

    @property
    def rule(self) -> tuple[int, int, int, int, bool, float]:
        """How it chooses; `Rule` in ops/native/moe_step.py."""
        return self.experts, self.top_k, self.expert_groups, self.top_groups, self.normalize, self.scaling

    def initialise(self, std: float, layers: int) -> None:
        nn.init.normal_(self.weight, std=std)
        self.e_score_correction_bias.zero_()

    def forward(self, x: Float[Tensor, "S D"]) -> tuple[Int[Tensor, "S J"], Float[Tensor, "S J"], Float[Tensor, "S E"]]:
        """
        Returns:
            the J = top-k chosen experts, their weights (FP32), and the score of every expert.
        """
        logits = linear(x.float(), self.weight)
        learning = torch.is_grad_enabled() and logits.requires_grad
        if kernels.is_invariant() and not learning:
            form = kernels.chosen("experts", logits.device, logits.dtype, logits, self.e_score_correction_bias)
            if form == "native":
                from seqloom.ops.native.moe_step import route

                return route(logits, self.e_score_correction_bias, self.rule)
        scores = rowwise(torch.sigmoid, logits)
        chosen = self._select(scores.detach())
        weights = scores.gather(-1, chosen)
        if self.normalize:
            weights = weights / (_sum(weights) + 1e-20)
        return chosen, weights * self.scaling, scores

    def balance_loss(self, scores: Float[Tensor, "B T E"], valid: Float[Tensor, "B T 1"]) -> Float[Tensor, ""]:
        """Σ over rows of tokens · E Σ_e f_e P_e, where f_e is the share of the row's assignments that expert e would
        get without the bias, and P_e its mean share of the scores (Nemotron 3 Nano; 1 when perfectly even)."""
        tokens = self.row_sum(valid).clamp(min=1)
        picks = best_experts(scores.detach(), None, self.top_k).flatten(1)
        row_counts = scores.new_zeros(len(scores), self.experts)
        row_counts.scatter_add_(1, picks, valid.expand(-1, -1, self.top_k).reshape(picks.shape))
        fraction = self.row_sum(row_counts[:, None]) / (tokens * self.top_k)
        shares = (scores @ fraction[..., None]) / scores.sum(-1, keepdim=True)  # Σ_e f_e P_e, but of one token
        return self.experts * (shares * valid).sum()

    def row_sum(self, x: Float[Tensor, "B T N"]) -> Float[Tensor, "B N"]:
        """The sum over a row, also where this process holds a stretch of it only."""
        return x.sum(1)

    @torch.no_grad()
    def rebalance(self, rate: float) -> float:
        """Move the selection bias towards even load and forget the counts.

        Returns:
            MaxVio, the largest expert load over the mean load; 1 when even, E / top-k at worst.
        """
        load = self.load.float()
        mean = load.mean()
        if mean == 0:
            return 1.0
        self.e_score_correction_bias += rate * torch.sign(mean - load)
        self.load.zero_()
        return float(load.max() / mean)

    def _select(self, scores: Float[Tensor, "S E"]) -> Int[Tensor, "S J"]:
        if self.expert_groups == 1:
            return best_experts(scores, self.e_score_correction_bias, self.top_k)
        grouped = (scores + self.e_score_correction_bias).unflatten(-1, (self.expert_groups, -1))
        group_score = _sum(grouped.topk(min(2, grouped.shape[-1]), -1).values)[..., 0]
        best = group_score.topk(self.top_groups, -1).indices
        keep = torch.zeros_like(group_score, dtype=torch.bool).scatter(-1, best, True)
        return best_experts(grouped.masked_fill(~keep[..., None], float("-inf")).flatten(-2), None, self.top_k)


def _sum(x: Float[Tensor, "*S J"]) -> Float[Tensor, "*S 1"]:
    """Over the last axis, in an order of its own where that is asked for."""
    if not kernels.is_invariant():
        return x.sum(-1, keepdim=True)
    return sum(x[..., 1:].split(1, -1), x[..., :1])


class Experts(nn.Module):
    """The routed experts' weights, stacked."""

    hidden_matrices: tuple[str, ...] = ("up_proj", "down_proj")
    low_bit = True  # these and the next two as in `Linear`
    products: Products | None = None
    places: Mapping[str, Place] = MappingProxyType({})

    def __init__(self, experts: int, width: int, expert_width: int) -> None:
        super().__init__()
        self.up_proj = nn.Parameter(torch.empty(experts, expert_width, width))
        self.down_proj = nn.Parameter(torch.empty(experts, width, expert_width))
        self.format: Format = "fp32"

    def initialise(self, std: float, layers: int) -> None:
        nn.init.normal_(self.up_proj, std=std)
        nn.init.normal_(self.down_proj, std=std / layers**0.5)

    def forward(
        self, x: Float[Tensor, "S I"], chosen: Int[Tensor, "S J"], weights: Float[Tensor, "S J"]
    ) -> Float[Tensor, "S I"]:
        if self.products is not None:
            return quantized_experts(x, chosen, weights, self.up_proj, self.down_proj, self.products, self.places)
        return experts(x.to(dtype_of(self.format)), chosen, weights, self.up_proj, self.down_proj)


class MoE(nn.Module):
    """One mixture-of-experts mixer; remembers nothing between calls."""

    def __init__(
        self,
        width: int,
        router: Router,
        expert_width: int,
        shared_width: int,
        latent_width: int | None,
        bias_rate: float,
    ) -> None:
        super().__init__()
        self.gate = router
        self.experts = Experts(router.experts, latent_width or width, expert_width)
        self.shared_experts = Mlp(width, shared_width)
        self.fc1_latent_proj = Linear(width, latent_width) if latent_width else None
        self.fc2_latent_proj = Linear(latent_width, width, residual_output=True) if latent_width else None
        self.bias_rate = bias_rate

    def forward(
        self, x: Float[Tensor, "B T D"], documents: Int[Tensor, "B T"] | None = None
    ) -> tuple[Float[Tensor, "B T D"], Routing]:
        """
        Args:
            documents: only their padding mark (-1) matters here: padding is not counted as load.
        """
        tokens = x.flatten(0, 1)
        chosen, weights, scores = self.gate(tokens)
        latent = self.fc1_latent_proj(tokens) if self.fc1_latent_proj is not None else tokens
        routed = self.experts(latent, chosen, weights)
        if self.fc2_latent_proj is not None:
            routed = self.fc2_latent_proj(routed)
        y = routed.to(x.dtype).unflatten(0, x.shape[:2]) + self.shared_experts(x)
        return y, self._routing(chosen, scores.unflatten(0, x.shape[:2]), documents)

    def _routing(
        self, chosen: Int[Tensor, "S J"], scores: Float[Tensor, "B T E"], documents: Int[Tensor, "B T"] | None
    ) -> Routing:
        if not self.training:
            return Routing(self.gate, scores.new_zeros(()), self.gate.load.new_zeros(self.gate.experts))
        if documents is None:
            valid = scores.new_ones(*scores.shape[:2], 1)
        else:
            valid = (documents >= 0).to(scores.dtype)[..., None]
        kept = chosen[valid.flatten().bool()]
        counts = kept.flatten().bincount(minlength=self.gate.experts)
        return Routing(self.gate, self.gate.balance_loss(scores, valid), counts)
