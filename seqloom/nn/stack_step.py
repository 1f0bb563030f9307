"""The short way of a few tokens through all layers of a model: one native call for what one call a layer does.

Every layer goes the short way of `nn.step`, with the same bits; what is saved is the way between the layers, in Python
and in waking threads, which in small models takes as long as the layers. It is for rows of an engine, whose views are
the same objects in every step, so what the call is told of them is made once.
"""

from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

from seqloom.nn.layer import Layer, Stack
from seqloom.nn.mamba_slots import MambaRows
from seqloom.nn.norm import RMSNorm
from seqloom.nn.paged_kv import PagedRows, PageTables
from seqloom.nn.parts import Parts
from seqloom.nn.step import Fit, are_few, as_made, ready_layer, undisturbed
from seqloom.ops.kernels import is_invariant, plain

if TYPE_CHECKING:
    from seqloom.ops.native.stack_step import StackWeights


class _Call(NamedTuple):
    """What is told of all layers for some rows, whose memory it does not keep alive.

    Attributes:
        views: of the rows, one for every layer; where they are.
        weights: with all that is told.
        paged: the first layer that has pages, None if none has.
        most_tokens: that the pages of a row hold.
    """

    views: list[int]
    weights: "StackWeights"
    paged: int | None
    most_tokens: int


class _Ready(NamedTuple):
    """All layers, found fit for the call, and the norm behind them, as they were then.

    Attributes:
        calls: by something of the rows' views that lives as long as they do.
    """

    dtype: torch.dtype
    parts: Parts
    fits: list[Fit]
    norm: Any
    calls: WeakIdKeyDictionary


_ready_stacks: WeakKeyDictionary[Stack, _Ready] = WeakKeyDictionary()


def few_tokens_of_rows(
    layers: Stack, norm: nn.Module, x: Float[Tensor, "B T D"], views: list[Any]
) -> Float[Tensor, "B T D"] | None:
    """norm(x after all layers), advancing what rows of an engine remember; None where every layer has to see for itself
    how it does it."""
    if not x.is_contiguous() or not plain((x,), "cpu"):
        return None
    found = stack_call(layers, norm, x.dtype, x.shape[0], x.shape[1], views)
    return None if found is None else found.step(x)


def stack_call(
    layers: Stack, norm: nn.Module, dtype: torch.dtype, batch: int, tokens: int, views: list[Any]
) -> "StackWeights | None":
    """What the native calls are told of all layers, the norm behind them and the rows' memory, for so many tokens of
    each row; None where the short way cannot be gone."""
    first = next((view for view in views if view is not None), None)
    if (
        not isinstance(first, MambaRows | PagedRows)
        or not are_few(batch, tokens)
        or not is_invariant()
        or not undisturbed(dtype)
    ):
        return None
    ready = _ready_stacks.get(layers)
    if (
        ready is None
        or ready.dtype is not dtype
        or len(ready.fits) != len(layers._modules)
        or not ready.parts.unchanged(norm, layers)
    ):
        ready = _examine(layers, norm, dtype)
        if ready is None:
            return None
        _ready_stacks[layers] = ready
    owner = first if isinstance(first, MambaRows) else first.tables.lengths
    call: _Call | None = ready.calls.get(owner)
    if call is None or call.views != list(map(id, views)):
        call = _told(ready, batch, tokens, views)
        if call is None:
            return None
        ready.calls[owner] = call
    if call.paged is not None:  # memory is written to behind torch's back
        assert max(views[call.paged].tables.lengths.tolist()) + tokens <= call.most_tokens
    return call.weights


def _examine(layers: Stack, norm: nn.Module, dtype: torch.dtype) -> _Ready | None:
    """Make all layers ready, if every one is fit."""
    if not isinstance(norm, RMSNorm) or not as_made(RMSNorm, norm) or not plain((norm.weight,), "cpu"):
        return None
    fits = []
    for layer in layers:
        plainly = as_made(Layer, layer) and as_made(nn.Identity, layer.output_norm) and layer.layer_scale is None
        if not plainly or (found := ready_layer(layer.norm, layer.mixer, dtype)) is None:
            return None
        fits.append(found.fit)
    from seqloom.ops.native.step import LayerWeights

    last = LayerWeights(norm.weight, norm.eps)
    copied = [parameter for fit in fits for parameter in fit.copied]
    return _Ready(dtype, Parts(norm, layers, [*copied, *last.copied]), fits, last, WeakIdKeyDictionary())


def _told(ready: _Ready, batch: int, tokens: int, views: list[Any]) -> _Call | None:
    """What the call is told, if all views are of the same rows."""
    from seqloom.ops.native.paged_attention import check
    from seqloom.ops.native.stack_step import StackWeights

    layers: list[Any] = []
    tables: PageTables | None = None
    mamba: MambaRows | None = None
    paged, most_tokens = None, 0
    for index, (fit, view) in enumerate(zip(ready.fits, views, strict=True)):
        if (told := fit.told(view)) is None:
            return None
        layers.append(told)
        if isinstance(view, PagedRows):
            if tables is None:
                tables, paged = view.tables, index
                most_tokens = tables.pages.shape[1] * view.stored.page_tokens
            if view.tables is not tables or len(tables.lengths) != batch:
                return None
            check(ready.dtype, tokens, view.stored, *tables)
        if isinstance(view, MambaRows):
            mamba = mamba or view
            if (view.first, view.count, view.guessed) != (mamba.first, batch, mamba.guessed):
                return None
    first, guessed = (0, False) if mamba is None else (mamba.first, mamba.guessed)
    return _Call(list(map(id, views)), StackWeights(layers, ready.norm, first, guessed, tables), paged, most_tokens)
