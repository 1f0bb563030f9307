"""All layers of a model for a few tokens of generation and the norm behind them, in one call, and the whole step from
token ids to chosen tokens; see stack_step.cpp."""

import ctypes
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import torch
from jaxtyping import Float, Float32, Int32, Int64
from torch import Tensor

from seqloom.ops.native.call import NUMBER, POINTER, SIZE, kernel, suffix, threads
from seqloom.ops.native.mamba_rows import Slots
from seqloom.ops.native.matrix import Weight, matrices
from seqloom.ops.native.moe_step import MoeWeights, Rule
from seqloom.ops.native.step import AttentionWeights, LayerWeights, MambaWeights, MlpWeights, held
from seqloom.ops.native.token_draw import ToldRace
from seqloom.ops.paged_attention import Pages
from seqloom.ops.token_draw import Race

_INT = ctypes.c_int32
_ELSEWHERE = Race(-1)
_TYPES = {
    "stack_step": (*[POINTER] * 4, SIZE, POINTER, NUMBER, POINTER),
    "whole_steps": (POINTER, SIZE, POINTER, NUMBER, *[POINTER] * 3, SIZE, POINTER),
}


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


class _Ends(ctypes.Structure):
    _fields_ = (("embeddings", POINTER), ("head", POINTER), ("vocabulary", SIZE), ("narrow", _INT))


class _Choices(ctypes.Structure):
    _fields_ = tuple((name, POINTER) for name in ("tokens", "races", "keys", "logits", "chosen"))


class Ends:
    """What is around the layers: the table of embeddings and the output head, both [V, D]."""

    def __init__(self, embeddings: Float[Tensor, "V D"], head: Weight) -> None:
        self.vocabulary, self.width = head.shape
        self._read = held(embeddings), held(head), matrices(head)
        narrow = embeddings.dtype == torch.bfloat16
        self.told = _Ends(embeddings.data_ptr(), ctypes.addressof(self._read[2]), self.vocabulary, narrow)


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
        self.layers = (_Layer * len(layers))(*(_layer(*told) for told in layers))
        self.gain, self.eps, _ = norm.told
        self.rows = _Rows(first=first, guessed=guessed)
        if tables is not None:
            pages, lengths = tables
            assert pages.is_contiguous()
            self.rows.table_width = pages.shape[1]
            self.rows.tables, self.rows.lengths = pages.data_ptr(), lengths.data_ptr()
        self._room: _Room | None = None

    def step(self, x: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        """norm(x after all layers)."""
        rows = self.rows
        rows.batch, rows.tokens, rows.width = x.shape
        rows.threads = threads()
        y, between = torch.empty_like(x), torch.empty(2, x.numel(), dtype=x.dtype)
        _form("stack_step", x.dtype)(
            x.data_ptr(), y.data_ptr(), between.data_ptr(), self.layers, len(self.layers), self.gain, self.eps,
            ctypes.byref(rows),
        )  # fmt: skip
        return y

    def whole_steps(
        self,
        ends: Ends,
        dtype: torch.dtype,
        fed: list[list[int]],
        races: list[Race | None],
        keys: list[int],
        times: int,
    ) -> tuple[Float[Tensor, "times B T D"], Float32[Tensor, "B T V"] | None, list[int]]:
        """From tokens [B T] to the choice of the next after each, and so on from those.

        Args:
            dtype: of the layers' inputs.
            races: of every row; None leaves the choice to others, who are given logits.
            keys: of all choices, in the order of the result; empty where every race takes the likeliest token.
            times: steps; more than one choose all tokens, and one for each row.
        Returns:
            hidden states; logits of the last step, if others need them; the tokens [times B T].
        """
        rows, batch, length = self.rows, len(fed), len(fed[0])
        assert times == 1 or (length == 1 and None not in races)
        rows.batch, rows.tokens, rows.width, rows.threads = batch, length, ends.width, threads()
        places = batch * length
        if self._room is None or len(self._room.chosen) < times * places:
            self._room = _Room(batch, times * places)
        room, choices = self._room, self._room.choices
        hidden, logits = torch.empty(times, batch, length, ends.width, dtype=dtype), None
        if None in races:
            logits = torch.empty(batch, length, ends.vocabulary)
        choices.logits = None if logits is None else logits.data_ptr()
        tokens = fed[0] if batch == 1 else [token for row in fed for token in row]
        assert min(tokens) >= 0
        assert max(tokens) < ends.vocabulary  # memory is read behind torch's back
        room.tokens[:places] = [*tokens]
        room.keys[: len(keys)] = [*keys]
        if races != room.filled:
            room.races[:] = [ToldRace(*(race or _ELSEWHERE)) for race in races]
            room.filled = races
        _form("whole_steps", dtype)(
            self.layers, len(self.layers), self.gain, self.eps, ctypes.byref(rows), ctypes.byref(ends.told),
            ctypes.byref(choices), times, hidden.data_ptr(),
        )  # fmt: skip
        return hidden, logits, room.chosen[: times * places]


class _Room:
    """What goes into a step and comes out of it, for so many rows and places at most."""

    def __init__(self, rows: int, places: int) -> None:
        self.tokens, self.chosen = (SIZE * places)(), (SIZE * places)()
        self.keys, self.races = (ctypes.c_uint64 * places)(), (ToldRace * rows)()
        self.filled: list[Race | None] = []
        parts = self.tokens, self.races, self.keys, None, self.chosen
        self.choices = _Choices(*(None if part is None else ctypes.addressof(part) for part in parts))


def _layer(weights: LayerWeights, more: ctypes.Structure) -> _Layer:
    gain, eps, matrices = weights.told
    return _Layer(gain, ctypes.addressof(matrices), ctypes.addressof(more), eps, _KINDS.index(type(more)))


@lru_cache
def _form(name: str, dtype: torch.dtype) -> Callable[..., None]:
    return kernel(f"{name}_{suffix(dtype)}", *_TYPES[name])
