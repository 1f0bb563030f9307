"""The short way of a few tokens through a layer while generating: one native call for what the modules do in ten.

Reading the weights once is nearly all the work there is for a token, so the way from module to module and from op to op
would take as long as the work. The short way computes the same bits as the modules. It is taken only where that is
certain: no gradients, documents, hooks, adapters, or changed parts, and all ops of the layer in their native form.

A layer is examined once, and made ready; from then on a token asks only whether it is still the same (`nn.parts`).
"""

from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from seqloom.nn.attention import Attention
from seqloom.nn.linear import Linear
from seqloom.nn.mamba2 import DepthwiseConv, Mamba2
from seqloom.nn.mamba_slots import MambaRows
from seqloom.nn.mlp import Mlp
from seqloom.nn.moe import Experts, MoE, Router
from seqloom.nn.narrow_state import NarrowMambaState
from seqloom.nn.norm import GatedGroupRMSNorm, RMSNorm
from seqloom.nn.packed import PackedExperts, PackedLinear
from seqloom.nn.paged_kv import PagedRows
from seqloom.nn.parts import Parts
from seqloom.nn.state import KVState, MambaState
from seqloom.numerics.precision import Format
from seqloom.ops.kernels import is_invariant, override, plain, table

if TYPE_CHECKING:
    from seqloom.ops.native.stack_step import Told

MOST_ROWS = 32
"""Tokens of all rows together; more are products of matrices, not of vectors."""
MOST_TOKENS = 8
"""Of a row; more are a scan."""

State = KVState | PagedRows | MambaState | NarrowMambaState | MambaRows | None

_FORMATS: dict[torch.dtype, Format] = {torch.float32: "fp32", torch.bfloat16: "bf16"}
_OPS = (
    "linear",
    "packed_linear",
    "norm",
    "squared_relu",
    "causal_conv",
    "ssd",
    "attention",
    "paged_attention",
    "experts",
    "token_draw",
)


Step = Callable[[Tensor, State], Tensor | None]
"""From x and what the layer remembers to x + mixer(norm(x)), unless that state is none of its business."""


class Fit(NamedTuple):
    """A layer's short way.

    Attributes:
        step: of this layer alone.
        copied: parameters that it has copies of.
        told: what a call of all layers is told of this one (`nn.stack_step`), for a state of an engine.
    """

    step: Step
    copied: list[Tensor]
    told: Callable[[State], "Told | None"]


class Ready(NamedTuple):
    """A layer that was found fit for the short way, as it was then."""

    dtype: torch.dtype
    parts: Parts
    fit: Fit


_ready_layers: WeakKeyDictionary[nn.Module, Ready] = WeakKeyDictionary()
"""By mixer."""


def few_tokens(
    norm: nn.Module, mixer: nn.Module, x: Float[Tensor, "B T D"], state: State
) -> Float[Tensor, "B T D"] | None:
    """x + mixer(norm(x)), advancing the state; None where the modules have to do it."""
    if not are_few(*x.shape[:2]) or not x.is_contiguous() or not undisturbed(x.dtype, x):
        return None
    ready = ready_layer(norm, mixer, x.dtype)
    return None if ready is None else ready.fit.step(x, state)


def are_few(batch: int, tokens: int) -> bool:
    return 0 < batch * tokens <= MOST_ROWS and tokens <= MOST_TOKENS


def ready_layer(norm: nn.Module, mixer: nn.Module, dtype: torch.dtype) -> Ready | None:
    """The layer as it is now, made ready; None if it is not fit."""
    ready = _ready_layers.get(mixer)
    if ready is None or ready.dtype is not dtype or not ready.parts.unchanged(norm, mixer):
        ready = _examine(norm, mixer, dtype)
        if ready is not None:
            _ready_layers[mixer] = ready
    return ready


def undisturbed(dtype: torch.dtype, *tensors: Tensor) -> bool:
    """Whether nobody listens, records or asks for other kernels, and tensors can be read as they are."""
    return (
        not torch.is_grad_enabled()
        and not torch_module._has_any_global_hook()
        and plain(tensors, "cpu")
        and dtype in _FORMATS
        and _all_native(override(), dtype)
    )


def _examine(norm: nn.Module, mixer: nn.Module, dtype: torch.dtype) -> Ready | None:
    """Make a layer ready, if it is fit for the short way."""
    if not isinstance(norm, RMSNorm) or not as_made(RMSNorm, norm):
        return None
    found: Fit | None = None
    if type(mixer) is Mlp:
        found = _mlp(norm, mixer, dtype)
    elif type(mixer) is MoE:
        found = _moe(norm, mixer, dtype)
    elif type(mixer) is Mamba2:
        found = _mamba(norm, mixer, dtype)
    elif type(mixer) is Attention:
        found = _attention(norm, mixer, dtype)
    return None if found is None else Ready(dtype, Parts(norm, mixer, found.copied), found)


def _mlp(norm: RMSNorm, mixer: Mlp, dtype: torch.dtype) -> Fit | None:
    up, down = mixer.up_proj, mixer.down_proj
    if not (as_made(Mlp, mixer) and readable(dtype, (up, down), norm.weight)):
        return None
    from seqloom.ops.native.stack_step import mlp_layer
    from seqloom.ops.native.step import MlpWeights, mlp_step

    weights = MlpWeights(norm.weight, norm.eps, up.weight, down.weight)

    def step(x: Tensor, state: State) -> Tensor | None:
        return mlp_step(x, weights) if state is None else None

    return Fit(step, weights.copied, lambda state: mlp_layer(weights) if state is None else None)


def _moe(norm: RMSNorm, mixer: MoE, dtype: torch.dtype) -> Fit | None:
    """Only where the modules are invariant too, and without what the router reports, which training alone asks for."""
    gate, experts, shared = mixer.gate, mixer.experts, mixer.shared_experts
    latent = [linear for linear in (mixer.fc1_latent_proj, mixer.fc2_latent_proj) if linear is not None]
    stacks = experts.up_proj, experts.down_proj
    others = [norm.weight, gate.weight, gate.e_score_correction_bias]
    others += [stack for stack in stacks if isinstance(stack, Tensor)]
    if not (
        as_made(MoE, mixer)
        and as_made(Router, gate)
        and as_made(Mlp, shared)
        and (as_made(Experts, experts) or as_made(PackedExperts, experts))
        and experts.format == _FORMATS[dtype]
        and readable(dtype, (shared.up_proj, shared.down_proj, *latent), *others)
    ):
        return None
    from seqloom.ops.native.moe_step import MoeWeights, moe_step
    from seqloom.ops.native.stack_step import moe_layer

    single = [gate.weight, *(linear.weight for linear in (shared.up_proj, shared.down_proj, *latent))]
    weights = MoeWeights(norm.weight, norm.eps, single, gate.e_score_correction_bias, *stacks)

    def step(x: Tensor, state: State) -> Tensor | None:
        return moe_step(x, weights, gate.rule) if state is None and is_invariant() else None

    return Fit(step, weights.copied, lambda state: moe_layer(weights, gate.rule) if state is None else None)


def _mamba(norm: RMSNorm, mixer: Mamba2, dtype: torch.dtype) -> Fit | None:
    into, out, conv, gated = mixer.in_proj, mixer.out_proj, mixer.conv1d, mixer.norm
    mixed = conv.weight, conv.bias, mixer.dt_bias, mixer.A_log, mixer.D, gated.weight
    if not (
        as_made(Mamba2, mixer)
        and as_made(DepthwiseConv, conv)
        and as_made(GatedGroupRMSNorm, gated)
        and gated.eps == norm.eps
        and conv.weight.dtype == conv.bias.dtype
        and readable(dtype, (into, out), norm.weight, *mixed)
    ):
        return None
    from seqloom.ops.native.mamba_rows import mamba_rows
    from seqloom.ops.native.stack_step import mamba_layer
    from seqloom.ops.native.step import MambaWeights, mamba_step

    weights = MambaWeights(norm.weight, norm.eps, into.weight, *mixed, out.weight, mixer.groups)

    def step(x: Tensor, state: State) -> Tensor | None:
        if isinstance(state, MambaRows) and state.slots.window.dtype == dtype:
            return mamba_rows(x, weights, state.slots.native, state.first, state.guessed)
        if isinstance(state, NarrowMambaState) and x.shape[1] == 1:
            opened = state.opened()
            if (y := step(x, opened)) is not None:
                state.close(opened)
            return y
        if not isinstance(state, MambaState) or state.window.dtype != dtype or state.ssm.dtype != torch.float32:
            return None
        if not (state.window.is_contiguous() and state.ssm.is_contiguous()):
            return None
        after = state.room_for_next()
        y, state.window = mamba_step(x, weights, state.window, state.ssm, after)
        state.ssm = after
        return y

    def told(state: State) -> "Told | None":
        if isinstance(state, MambaRows) and state.slots.window.dtype == dtype:
            return mamba_layer(weights, state.slots.native)
        return None

    return Fit(step, weights.copied, told)


def _attention(norm: RMSNorm, mixer: Attention, dtype: torch.dtype) -> Fit | None:
    projections = mixer.q_proj, mixer.k_proj, mixer.v_proj, mixer.o_proj
    if not (
        as_made(Attention, mixer)
        and as_made(nn.Identity, mixer.q_norm, mixer.k_norm, mixer.v_norm)
        and mixer.shaping.cap is None
        and mixer.shaping.clip is None
        and readable(dtype, projections, norm.weight)
    ):
        return None
    from seqloom.ops.native.paged_step import paged_attention_step
    from seqloom.ops.native.stack_step import attention_layer
    from seqloom.ops.native.step import AttentionWeights, attention_step

    scale = mixer.shaping.inverse_temperature / mixer.head_width**0.5
    matrices = [linear.weight for linear in projections]
    weights = AttentionWeights(norm.weight, norm.eps, matrices, mixer.heads, scale)

    def step(x: Tensor, state: State) -> Tensor | None:
        if isinstance(state, PagedRows):
            return paged_attention_step(x, weights, state.stored, *state.tables)
        if isinstance(state, KVState) and state.dtype == dtype:
            return attention_step(x, weights, *state.extend(x.shape[1]))
        return None

    def told(state: State) -> "Told | None":
        return attention_layer(weights, state.stored) if isinstance(state, PagedRows) else None

    return Fit(step, weights.copied, told)


def as_made(kind: type[nn.Module], *modules: nn.Module) -> bool:
    """Whether modules are of this very class, and nobody listens to them."""
    for module in modules:
        if type(module) is not kind or module._forward_hooks or module._forward_pre_hooks:
            return False
    return True


def readable(dtype: torch.dtype, linears: tuple[Linear | PackedLinear, ...], *others: Tensor) -> bool:
    """Whether a layer's matrices, plain or packed, and other tensors can be read as they are, by native kernels."""
    format, tensors = _FORMATS[dtype], list(others)
    for linear in linears:
        if linear.format != format or not (as_made(Linear, linear) or as_made(PackedLinear, linear)):
            return False
        if isinstance(linear.weight, Tensor):
            tensors.append(linear.weight)
    return all(tensor.is_contiguous() for tensor in tensors) and plain(tuple(tensors), "cpu")


@lru_cache
def _all_native(_override: str, dtype: torch.dtype) -> bool:
    """Whether every op of a layer runs in its native form under the override that is set now."""
    forms = table(torch.device("cpu"), dtype)
    return all(forms[op] == "native" for op in _OPS)
