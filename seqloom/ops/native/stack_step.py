"""All layers of a model for a few tokens of generation and the norm behind them, in one call; see stack_step.cpp."""

import ctypes
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import torch
from jaxtyping import Float, Int32, Int64
from torch import Tensor

from seqloom.ops.native.call import NUMBER, POINTER, SIZE, kernel, suffix, threads
from seqloom.ops.native.mamba_rows import Slots
from seqloom.ops.native.moe_step import MoeWeights, Rule
from seqloom.ops.native.step import AttentionWeights, LayerWeights, MambaWeights, MlpWeights
from seqloom.ops.paged_attention import Pages

_INT = ctypes.c_int32


class MlpLayer(ctypes.Structure):
    _fields_ = (("hidden_width", SIZE),)


class MambaLayer(ctypes.Structure):
    _fields_ = tuple((name, POINTER) for name in ("slots", "mixing", "gated_gain"))


class AttentionLayer(ctypes.Structure):
    _fields_ = (
        *((name, SIZE) for name in ("heads", "groups", "head_width", "page_tokens")),
        *((name, POINTER) for name in ("keys", "values")),
        *((name, NUMBER) for name in ("k_scale", "v_scale", "scale")),
        ("coded", _INT),
    )


class MoeLayer(ctypes.Structure):
    _fields_ = (
        *((name, POINTER) for name in ("up", "down", "bias")),
        *((name, SIZE) for name in ("inner_width", "expert_width", "shared_width")),
        *((name, SIZE) for name in ("experts", "top_k", "groups", "top_groups")),
        *((name, _INT) for name in ("latent", "normalize")),
        ("scaling", NUMBER),
    )


_KINDS = (MlpLayer, MambaLayer, AttentionLayer, MoeLayer)
Told = tuple[LayerWeights, ctypes.Structure]
"""What a layer is told: its norm and matrices, and what its kind has besides."""


class _Layer(ctypes.Structure):
    _fields_ = (("gain", POINTER), ("matrices", POINTER), ("more", POINTER), ("eps", NUMBER), ("kind", _INT))


class _Rows(ctypes.Structure):
    _fields_ = (
        *((name, SIZE) for name in ("batch", "tokens", "width", "first", "table_width")),
        *((name, POINTER) for name in ("tables", "lengths")),
        *((name, _INT) for name in ("guessed", "threads")),
    )


def mlp_layer(weights: MlpWeights) -> Told:
    return weights, MlpLayer(weights.hidden_width)


def mamba_layer(weights: MambaWeights, slots: Slots) -> Told:
    """`slots` must live as long as this is used, as the pages of an attention layer must."""
    return weights, MambaLayer(ctypes.addressof(slots), ctypes.addressof(weights.mixing), weights.gated_gain)


def attention_layer(weights: AttentionWeights, pages: Pages) -> Told:
    _, groups, head_width, page_tokens = pages.keys.shape
    return weights, AttentionLayer(
        weights.heads, groups, head_width, page_tokens, pages.keys.data_ptr(), pages.values.data_ptr(), pages.k_scale,
        pages.v_scale, weights.scale * pages.k_scale, pages.coded,
    )  # fmt: skip


def moe_layer(weights: MoeWeights, rule: Rule) -> Told:
    up, down, latent, *widths, bias = weights.of_experts
    experts, top_k, groups, top_groups, normalize, scaling = rule
    return weights, MoeLayer(
        ctypes.addressof(up), ctypes.addressof(down), bias, *widths, experts, top_k, groups, top_groups, latent,
        normalize, scaling,
    )  # fmt: skip


class StackWeights:
    """All layers as they are told, for calls on rows from `first` on, and the norm behind them.

    Args:
        tables: pages and lengths of the rows; None without attention. They must live as long as this is used, as all
            that rows remember.
    """

    def __init__(
        self,
        layers: Sequence[Told],
        norm: LayerWeights,
        first: int,
        guessed: bool,
        tables: tuple[Int32[Tensor, "B P"], Int64[Tensor, "B"]] | None,
    ) -> None:
        self._read: list[Any] = [layers, norm]  # lives as long as this
        self._layers = (_Layer * len(layers))(*(_layer(*told) for told in layers))
        self._gain, self._eps, _ = norm.told
        self._rows = _Rows(first=first, guessed=guessed)
        if tables is not None:
            pages, lengths = tables
            assert pages.is_contiguous()
            self._rows.table_width = pages.shape[1]
            self._rows.tables, self._rows.lengths = pages.data_ptr(), lengths.data_ptr()

    def step(self, x: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        """norm(x after all layers)."""
        rows = self._rows
        rows.batch, rows.tokens, rows.width = x.shape
        rows.threads = threads()
        y, between = torch.empty_like(x), torch.empty(2, x.numel(), dtype=x.dtype)
        _form(x.dtype)(
            x.data_ptr(), y.data_ptr(), between.data_ptr(), self._layers, len(self._layers), self._gain, self._eps,
            ctypes.byref(rows),
        )  # fmt: skip
        return y


def _layer(weights: LayerWeights, more: ctypes.Structure) -> _Layer:
    gain, eps, matrices = weights.told
    return _Layer(gain, ctypes.addressof(matrices), ctypes.addressof(more), eps, _KINDS.index(type(more)))


@lru_cache
def _form(dtype: torch.dtype) -> Callable[..., None]:
    return kernel(f"stack_step_{suffix(dtype)}", *[POINTER] * 4, SIZE, POINTER, NUMBER, POINTER)
