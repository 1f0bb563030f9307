"""The short way of a few tokens through a layer while generating: one native call for what the modules do in ten.

Reading the weights once is nearly all the work there is for a token, so the way from module to module and from op to op
would take as long as the work. The short way computes the same bits as the modules. It is taken only where that is
certain: no gradients, documents, hooks, adapters, or changed parts, and all ops of the layer in their native form.
"""

import os
from functools import lru_cache

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from seqloom.nn.attention import Attention
from seqloom.nn.linear import Linear
from seqloom.nn.mamba2 import DepthwiseConv, Mamba2
from seqloom.nn.mamba_slots import MambaRows
from seqloom.nn.mlp import Mlp
from seqloom.nn.narrow_state import NarrowMambaState
from seqloom.nn.norm import GatedGroupRMSNorm, RMSNorm
from seqloom.nn.packed import PackedLinear
from seqloom.nn.paged_kv import PagedRows
from seqloom.nn.state import KVState, MambaState
from seqloom.numerics.precision import Format
from seqloom.ops.kernels import VARIABLE, chosen, table

MOST_ROWS = 32
"""Tokens of all rows together; more are products of matrices, not of vectors."""
MOST_TOKENS = 8
"""Of a row; more are a scan."""

_FORMATS: dict[torch.dtype, Format] = {torch.float32: "fp32", torch.bfloat16: "bf16"}
_OPS = ("linear", "packed_linear", "norm", "squared_relu", "causal_conv", "ssd", "attention", "paged_attention")


def few_tokens(
    norm: nn.Module,
    mixer: nn.Module,
    x: Float[Tensor, "B T D"],
    state: KVState | PagedRows | MambaState | NarrowMambaState | MambaRows | None,
) -> Float[Tensor, "B T D"] | None:
    """x + mixer(norm(x)), advancing the state; None where the modules have to do it."""
    batch, tokens, _ = x.shape
    if not 0 < batch * tokens <= MOST_ROWS or tokens > MOST_TOKENS or torch.is_grad_enabled():
        return None
    if not isinstance(norm, RMSNorm) or not _as_made(RMSNorm, norm):
        return None
    if not x.is_contiguous() or torch_module._has_any_global_hook():
        return None
    if type(mixer) is Mlp and state is None:
        return _mlp(norm, mixer, x)
    if type(mixer) is Mamba2 and isinstance(state, MambaState):
        return _mamba(norm, mixer, x, state)
    if type(mixer) is Mamba2 and isinstance(state, NarrowMambaState) and tokens == 1:
        opened = state.opened()
        if (y := _mamba(norm, mixer, x, opened)) is not None:
            state.close(opened)
        return y
    if type(mixer) is Mamba2 and isinstance(state, MambaRows):
        return _mamba_rows(norm, mixer, x, state)
    if type(mixer) is Attention and isinstance(state, KVState):
        return _attention(norm, mixer, x, state)
    if type(mixer) is Attention and isinstance(state, PagedRows):
        return _paged_attention(norm, mixer, x, state)
    return None


def _mlp(norm: RMSNorm, mixer: Mlp, x: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"] | None:
    up, down = mixer.up_proj, mixer.down_proj
    if not (_as_made(Mlp, mixer) and _ready(x, (up, down), norm.weight)):
        return None
    from seqloom.ops.native.step import mlp_step

    return mlp_step(x, norm.weight, norm.eps, up.weight, down.weight)


def _mamba(norm: RMSNorm, mixer: Mamba2, x: Float[Tensor, "B T D"], state: MambaState) -> Float[Tensor, "B T D"] | None:
    into, out, conv, gated = mixer.in_proj, mixer.out_proj, mixer.conv1d, mixer.norm
    others = (conv.weight, conv.bias, mixer.dt_bias, mixer.A_log, mixer.D, gated.weight, state.window, state.ssm)
    if not (
        _as_made(Mamba2, mixer)
        and _as_made(DepthwiseConv, conv)
        and _as_made(GatedGroupRMSNorm, gated)
        and gated.eps == norm.eps
        and state.window.dtype == x.dtype
        and state.ssm.dtype == torch.float32
        and conv.weight.dtype == conv.bias.dtype
        and _ready(x, (into, out), norm.weight, *others)
    ):
        return None
    from seqloom.ops.native.step import MambaWeights, mamba_step

    weights = MambaWeights(into.weight, *others[:6], out.weight)
    after = state.room_for_next()
    y, window = mamba_step(x, norm.weight, norm.eps, weights, mixer.groups, state.window, state.ssm, after)
    state.window, state.ssm = window, after
    return y


def _mamba_rows(
    norm: RMSNorm, mixer: Mamba2, x: Float[Tensor, "B T D"], state: MambaRows
) -> Float[Tensor, "B T D"] | None:
    into, out, conv, gated = mixer.in_proj, mixer.out_proj, mixer.conv1d, mixer.norm
    others = (conv.weight, conv.bias, mixer.dt_bias, mixer.A_log, mixer.D, gated.weight)
    if not (
        _as_made(Mamba2, mixer)
        and _as_made(DepthwiseConv, conv)
        and _as_made(GatedGroupRMSNorm, gated)
        and gated.eps == norm.eps
        and state.slots.window.dtype == x.dtype
        and conv.weight.dtype == conv.bias.dtype
        and _ready(x, (into, out), norm.weight, *others)
    ):
        return None
    from seqloom.ops.native.mamba_rows import mamba_rows
    from seqloom.ops.native.step import MambaWeights

    weights = MambaWeights(into.weight, *others, out.weight)
    return mamba_rows(x, norm.weight, norm.eps, weights, state.slots.native, state.first, state.guessed)


def _attention(
    norm: RMSNorm, mixer: Attention, x: Float[Tensor, "B T D"], state: KVState
) -> Float[Tensor, "B T D"] | None:
    if not (state.dtype == x.dtype and _attends_as_made(norm, mixer, x)):
        return None
    from seqloom.ops.native.step import AttentionWeights, attention_step

    keys, values, before = state.extend(x.shape[1])
    weights = AttentionWeights(*(linear.weight for linear in _projections(mixer)))
    scale = mixer.shaping.inverse_temperature / mixer.head_width**0.5
    return attention_step(x, norm.weight, norm.eps, weights, keys, values, before, scale)


def _paged_attention(
    norm: RMSNorm, mixer: Attention, x: Float[Tensor, "B T D"], state: PagedRows
) -> Float[Tensor, "B T D"] | None:
    if not _attends_as_made(norm, mixer, x):
        return None
    from seqloom.ops.native.paged_step import paged_attention_step
    from seqloom.ops.native.step import AttentionWeights

    weights = AttentionWeights(*(linear.weight for linear in _projections(mixer)))
    scale = mixer.shaping.inverse_temperature / mixer.head_width**0.5
    return paged_attention_step(x, norm.weight, norm.eps, weights, state.stored, *state.tables, scale)


def _attends_as_made(norm: RMSNorm, mixer: Attention, x: Float[Tensor, "B T D"]) -> bool:
    """Whether an attention layer is without additions, and ready."""
    return (
        _as_made(Attention, mixer)
        and _as_made(nn.Identity, mixer.q_norm, mixer.k_norm, mixer.v_norm)
        and mixer.shaping.cap is None
        and mixer.shaping.clip is None
        and _ready(x, _projections(mixer), norm.weight)
    )


def _projections(mixer: Attention) -> tuple[Linear | PackedLinear, ...]:
    return mixer.q_proj, mixer.k_proj, mixer.v_proj, mixer.o_proj


def _as_made(kind: type[nn.Module], *modules: nn.Module) -> bool:
    """Whether modules are of this very class, and nobody listens to them."""
    for module in modules:
        if type(module) is not kind or module._forward_hooks or module._forward_pre_hooks:
            return False
    return True


def _ready(x: Tensor, linears: tuple[Linear | PackedLinear, ...], *others: Tensor) -> bool:
    """Whether a layer's matrices, plain or packed, and other tensors can be read as they are, by native kernels."""
    format, plain = _FORMATS.get(x.dtype), list(others)
    for linear in linears:
        if linear.format != format or not (_as_made(Linear, linear) or _as_made(PackedLinear, linear)):
            return False
        if isinstance(linear.weight, Tensor):
            plain.append(linear.weight)
    for tensor in plain:
        if not tensor.is_contiguous():
            return False
    override = os.environ[VARIABLE] if VARIABLE in os.environ else ""  # noqa: SIM401 -- `get` raises inside
    return chosen("linear", x.device, x.dtype, x, *plain) == "native" and _all_native(override, x.dtype)


@lru_cache
def _all_native(_override: str, dtype: torch.dtype) -> bool:
    """Whether every op of a layer runs in its native form under the override that is set now."""
    forms = table(torch.device("cpu"), dtype)
    return all(forms[op] == "native" for op in _OPS)
