"""The selective state-space scan of Mamba-2, step by step and as matrix products.

    S_t = exp(dt_t a) S_{t-1} + dt_t x_t b_t^T,   y_t = S_t c_t

Every head has one decay rate a < 0; the heads of a group share b and c. Where a document begins the state is zero.

Inside `kernels.invariant()` tokens are taken one after the other. Otherwise the chunked form may run.

The chunked form (SSD) walks over pieces of Q tokens and carries one state from piece to piece. With α_i the sum of
dt a up to position i of the piece, and u_j = dt_j x_j:

    y_i = Σ_{j≤i} exp(α_i − α_j) (c_i·b_j) u_j  +  exp(α_i) S c_i
    S  <- exp(α_Q) S + Σ_j exp(α_Q − α_j) u_j b_j^T

All exponents are at most 0, so nothing overflows. Products with b and c run once per group, with its heads side by
side. The backward pass walks from the last piece to the first and computes the decays anew. What position i reads of
position j counts for α_i and against α_j; both are sums of the same numbers in FP64, so that what lies before or after
a step altogether cancels exactly. (∂α_t = y_t·∂y_t − u_t·∂u_t is shorter, but leaves the rounding of both products.)

Paper: Mamba-2 (SSD), section 6 and Listing 1; Nemotron-H for groups.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import product
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from seqloom.ops.kernels import chosen, is_invariant


def ssd(
    x: Float[Tensor, "B T H P"],
    dt: Float[Tensor, "B T H"],
    a: Float[Tensor, "H"],
    b: Float[Tensor, "B T G N"],
    c: Float[Tensor, "B T G N"],
    state: Float[Tensor, "B H P N"] | None = None,
    documents: Int[Tensor, "B T"] | None = None,
    *,
    chunk: int,
    dt_bias: Float[Tensor, "H"] | None = None,
    skip: Float[Tensor, "H"] | None = None,
) -> tuple[Float[Tensor, "B T H P"], Float[Tensor, "B H P N"]]:
    """Run the scan with the implementation chosen for this device and dtype.

    Args:
        dt: step sizes, positive; with `dt_bias` what becomes one: softplus(dt + dt_bias).
        a: decay rates, negative.
        state: what earlier tokens left behind; None starts from zero.
        documents: document numbers of packed rows; the state is reset where they change, except that the first
            position continues `state`. -1 marks padding on the right: it leaves the state as it is, and its outputs
            mean nothing.
        chunk: tokens per piece of the chunked form; changes speed and rounding, never meaning.
        skip: per head, what is added of `x` itself: y_t = S_t c_t + skip x_t.
    Returns:
        outputs in the dtype of `x`, and the state after the last token of each row (FP32, or wider as `x`).
    """
    implementation = chosen("ssd", x.device, x.dtype, x, dt, a, b, c, state, documents, dt_bias, skip)
    if implementation == "native" and b.dtype == c.dtype == x.dtype:
        from seqloom.ops.native.ssd import ssd_native

        return ssd_native(x, dt, a, b, c, state, documents, chunk=chunk, dt_bias=dt_bias, skip=skip)
    if is_invariant() and (x.shape[:2] != (1, 1) or documents is not None):
        return _one_by_one(partial(ssd, chunk=chunk, dt_bias=dt_bias, skip=skip), x, dt, a, b, c, state, documents)
    if dt_bias is not None:
        dt = F.softplus(_wide(dt) + _wide(dt_bias))
    if implementation == "triton":
        from seqloom.ops.triton.ssd import serves, ssd_triton

        if serves(x, b):
            return ssd_triton(x, dt, a, b, c, state, documents, chunk=chunk, skip=skip)
    if implementation == "reference":
        y, state = ssd_reference(x, dt, a, b, c, state, documents)
    elif x.shape[1] == 1 and state is not None and documents is None:
        y, state = ssd_step(x[:, 0], dt[:, 0], a, b[:, 0], c[:, 0], state)
        y = y[:, None]
    else:
        y, state = ssd_chunked(x, dt, a, b, c, state, documents, chunk=chunk)
    return y if skip is None else (y + _wide(skip)[:, None] * x).to(x.dtype), state


def slices(x: Float[Tensor, "B T C"], sizes: Sequence[int]) -> tuple[Float[Tensor, "B T _"], ...]:
    """`x` cut along its channels, as by `split`. Where the gradients of the slices lie side by side in memory already,
    as the native scan writes them, putting them together costs nothing."""
    return _Slices.apply(x, sizes) if x.requires_grad and torch.is_grad_enabled() else x.split(sizes, dim=-1)


class _Slices(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, sizes: Sequence[int]) -> tuple[Tensor, ...]:
        ctx.shape = x.shape
        return x.split(sizes, dim=-1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        first, place = gradients[0], gradients[0].storage_offset()
        for gradient in gradients:
            memory = gradient.untyped_storage().data_ptr(), gradient.storage_offset(), gradient.stride()
            if memory != (first.untyped_storage().data_ptr(), place, first.stride()) or first.stride(-1) != 1:
                return torch.cat(gradients, dim=-1), None
            place += gradient.shape[-1]
        return first.as_strided(ctx.shape, first.stride()), None


def ssd_reference(
    x: Float[Tensor, "B T H P"],
    dt: Float[Tensor, "B T H"],
    a: Float[Tensor, "H"],
    b: Float[Tensor, "B T G N"],
    c: Float[Tensor, "B T G N"],
    state: Float[Tensor, "B H P N"] | None = None,
    documents: Int[Tensor, "B T"] | None = None,
) -> tuple[Float[Tensor, "B T H P"], Float[Tensor, "B H P N"]]:
    """The scan one step at a time, as the formula reads; arguments and results as in `ssd`."""
    state, dt, resets = _prepare(x, dt, b, state, documents)
    b, c = (part.to(state.dtype).repeat_interleave(x.shape[2] // b.shape[2], dim=2) for part in (b, c))
    outputs = []
    for t in range(x.shape[1]):
        if resets is not None:
            state = torch.where(resets[:, t, None, None, None], 0.0, state)
        decay = torch.exp(dt[:, t] * a)[..., None, None]
        state = decay * state + torch.einsum("bh,bhp,bhn->bhpn", dt[:, t], x[:, t].to(state.dtype), b[:, t])
        outputs.append(torch.einsum("bhpn,bhn->bhp", state, c[:, t]))
    return torch.stack(outputs, dim=1).to(x.dtype), state


def _one_by_one(
    form: Callable[..., tuple[Tensor, Tensor]],
    x: Float[Tensor, "B T H P"],
    dt: Float[Tensor, "B T H"],
    a: Float[Tensor, "H"],
    b: Float[Tensor, "B T G N"],
    c: Float[Tensor, "B T G N"],
    state: Float[Tensor, "B H P N"] | None,
    documents: Int[Tensor, "B T"] | None,
) -> tuple[Float[Tensor, "B T H P"], Float[Tensor, "B H P N"]]:
    """The scan in calls for one token of one row: operations of torch take other ways for other shapes, which shows in
    the last bits."""
    state, _, resets = _prepare(x, dt, b, state, documents)
    y, state = torch.zeros_like(x, memory_format=torch.contiguous_format), state.clone()
    for row, t in product(range(x.shape[0]), range(x.shape[1])):
        if documents is not None and documents[row, t] < 0:
            continue
        one, now = slice(row, row + 1), slice(t, t + 1)
        before = torch.zeros_like(state[one]) if resets is not None and resets[row, t] else state[one]
        y[one, now], state[one] = form(x[one, now], dt[one, now], a, b[one, now], c[one, now], before)
    return y, state


def ssd_step(
    x: Float[Tensor, "B H P"],
    dt: Float[Tensor, "B H"],
    a: Float[Tensor, "H"],
    b: Float[Tensor, "B G N"],
    c: Float[Tensor, "B G N"],
    state: Float[Tensor, "B H P N"],
) -> tuple[Float[Tensor, "B H P"], Float[Tensor, "B H P N"]]:
    """Advance the scan by one token; the given state is left untouched."""
    groups = b.shape[1]
    grouped = (state * torch.exp(dt * a)[..., None, None]).unflatten(1, (groups, -1))  # B G R P N
    u = (dt[..., None] * x).unflatten(1, (groups, -1))
    grouped = torch.addcmul(grouped, u[..., None], b[:, :, None, None].to(state.dtype))
    y = grouped.flatten(2, 3) @ c[..., None].to(state.dtype)  # B G RP 1
    return y.view(x.shape).to(x.dtype), grouped.flatten(1, 2)


def ssd_chunked(
    x: Float[Tensor, "B T H P"],
    dt: Float[Tensor, "B T H"],
    a: Float[Tensor, "H"],
    b: Float[Tensor, "B T G N"],
    c: Float[Tensor, "B T G N"],
    state: Float[Tensor, "B H P N"] | None = None,
    documents: Int[Tensor, "B T"] | None = None,
    *,
    chunk: int,
) -> tuple[Float[Tensor, "B T H P"], Float[Tensor, "B H P N"]]:
    """The scan as matrix products over pieces of `chunk` tokens; arguments and results as in `ssd`."""
    state, dt, resets = _prepare(x, dt, b, state, documents)
    return _ChunkedScan.apply(x, dt, a, b, c, state, resets, chunk)


def _prepare(
    x: Float[Tensor, "B T H P"],
    dt: Float[Tensor, "B T H"],
    b: Float[Tensor, "B T G N"],
    state: Float[Tensor, "B H P N"] | None,
    documents: Int[Tensor, "B T"] | None,
) -> tuple[Float[Tensor, "B H P N"], Float[Tensor, "B T H"], Bool[Tensor, "B T"] | None]:
    """The starting state in the dtype of accumulation, step sizes (zero at padding), and where the state is reset."""
    assert x.shape[2] % b.shape[2] == 0, f"{x.shape[2]} heads cannot be split into {b.shape[2]} groups"
    dtype = torch.promote_types(x.dtype, torch.float32)
    if state is None:
        state = torch.zeros(x.shape[0], *x.shape[2:], b.shape[3], dtype=dtype, device=x.device)
    state, dt = state.to(dtype), dt.to(dtype)
    if documents is None:
        return state, dt, None
    dt = torch.where(documents[..., None] < 0, 0.0, dt)
    resets = torch.zeros_like(documents, dtype=torch.bool)
    resets[:, 1:] = (documents[:, 1:] != documents[:, :-1]) & (documents[:, 1:] >= 0)
    return state, dt, resets


class _Piece(NamedTuple):
    """What both passes need of one piece of Q tokens, R = H / G heads to a group; every decay lies in [0, 1]."""

    x: Float[Tensor, "B G R Q P"]
    dt: Float[Tensor, "B G R Q 1"]
    u: Float[Tensor, "B G R Q P"]
    b: Float[Tensor, "B G Q N"]
    c: Float[Tensor, "B G Q N"]
    visible: Float[Tensor, "#B 1 Q Q"]  # 1 where position j <= i lies in the document of i
    entering: Float[Tensor, "B G R Q 1"]  # exp(α_i), from the state before the piece to position i
    inside: Float[Tensor, "B G R Q Q"]  # exp(α_i − α_j), meaningful where visible
    leaving: Float[Tensor, "B G R Q 1"]  # exp(α_Q − α_j), from position j to the state after the piece


class _ChunkedScan(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        dt: Tensor,
        a: Tensor,
        b: Tensor,
        c: Tensor,
        state: Tensor,
        resets: Tensor | None,
        chunk: int,
    ) -> tuple[Tensor, Tensor]:
        groups = b.shape[2]
        y = torch.empty_like(x, dtype=state.dtype, memory_format=torch.contiguous_format)
        states = [state]
        for span in _spans(x.shape[1], chunk):
            piece = _piece(x, dt, a, b, c, resets, span)
            scores = (piece.c @ piece.b.mT) * piece.visible
            within = piece.inside.mul_(scores[:, :, None]) @ piece.u
            flat = state.unflatten(1, (groups, -1)).flatten(2, 3)  # B G RP N
            carried = (piece.c @ flat.mT).unflatten(-1, (-1, x.shape[3])).transpose(2, 3)
            torch.addcmul(within, piece.entering, carried, out=_by_head(y[:, span], groups))
            written = (_side_by_side(piece.u, piece.leaving).mT @ piece.b).view(state.shape)
            state = written.addcmul_(piece.entering[..., -1:, :].flatten(1, 2), state)
            if any(ctx.needs_input_grad):
                states.append(state)
        ctx.save_for_backward(x, dt, a, b, c, resets, *states[:-1])
        ctx.chunk = chunk
        return y.to(x.dtype), state

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor, dstate: Tensor) -> tuple[Tensor | None, ...]:
        x, dt, a, b, c, resets, *states = ctx.saved_tensors
        groups = b.shape[2]
        dx, ddt, db, dc = (torch.empty_like(t, memory_format=torch.contiguous_format) for t in (x, dt, b, c))
        da = torch.zeros_like(a)
        for span in reversed(list(_spans(x.shape[1], ctx.chunk))):
            piece = _piece(x, dt, a, b, c, resets, span)
            before = states.pop()
            flat, dflat = (t.unflatten(1, (groups, -1)).flatten(2, 3) for t in (before, dstate))  # B G RP N
            dy_heads = _by_head(dy[:, span], groups).to(dstate.dtype).contiguous()

            scores = (piece.c @ piece.b.mT) * piece.visible
            dweights = (dy_heads @ piece.u.mT).mul_(piece.inside)
            dscores = dweights.sum(2).mul_(piece.visible)
            du = piece.inside.mul_(scores[:, :, None]).mT @ dy_heads
            dwritten = piece.b @ dflat.mT
            du.addcmul_(piece.leaving, dwritten.unflatten(-1, (-1, x.shape[3])).transpose(2, 3))
            read = _side_by_side(dy_heads, piece.entering)
            written = _side_by_side(piece.u, piece.leaving)
            dc[:, span] = (dscores @ piece.b + read @ flat).transpose(1, 2)
            db[:, span] = (dscores.mT @ piece.c + written @ dflat).transpose(1, 2)

            pairs = dweights.mul_(scores[:, :, None])
            dentering = _per_head((piece.c @ flat.mT).mul_(read), x.shape[3])
            dleaving = _per_head(dwritten.mul_(written), x.shape[3])
            dalpha = pairs.sum(-1, dtype=torch.float64) - pairs.sum(-2, dtype=torch.float64) + dentering - dleaving
            faded = piece.entering[..., -1, 0] * (before * dstate).sum((-2, -1)).view(dalpha.shape[:3])
            dalpha[..., -1] += faded + dleaving.sum(-1, dtype=torch.float64)
            dlog = (dalpha @ piece.visible.double()).to(a.dtype)  # the later positions of the same document
            u_du = (piece.x * du).sum(-1)  # per unit of dt
            ddt[:, span] = (u_du + a.view(groups, -1, 1) * dlog).permute(0, 3, 1, 2).flatten(2)
            da += (dlog * piece.dt[..., 0]).sum((0, 3)).flatten()
            torch.mul(du, piece.dt, out=_by_head(dx[:, span], groups))
            dstate = (read.mT @ piece.c).view(dstate.shape).addcmul_(piece.entering[..., -1:, :].flatten(1, 2), dstate)
        return dx, ddt, da, db, dc, dstate, None, None


def _wide(x: Float[Tensor, "*axes"]) -> Float[Tensor, "*axes"]:
    """At least FP32."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _spans(length: int, chunk: int) -> Iterator[slice]:
    return (slice(start, min(start + chunk, length)) for start in range(0, length, chunk))


def _piece(
    x: Float[Tensor, "B T H P"],
    dt: Float[Tensor, "B T H"],
    a: Float[Tensor, "H"],
    b: Float[Tensor, "B T G N"],
    c: Float[Tensor, "B T G N"],
    resets: Bool[Tensor, "B T"] | None,
    span: slice,
) -> _Piece:
    dtype, groups = dt.dtype, b.shape[2]
    x = _by_head(x[:, span], groups).to(dtype)
    dt = _by_head(dt[:, span, :, None], groups).contiguous()
    b, c = (part[:, span].transpose(1, 2).to(dtype).contiguous() for part in (b, c))
    tokens = x.shape[3]
    visible = torch.ones(1, 1, tokens, tokens, dtype=dtype, device=x.device).tril_()
    if resets is not None:
        document = resets[:, None, span].cumsum(-1)  # 0 for the one that enters the piece
        visible = visible * (document[..., :, None] == document[..., None, :])
    # Summed within each document, so that not even the rounding of one depends on another; in FP64, and subtracted in
    # two parts, since α may be thousands where the differences that matter are below one.
    alpha = ((dt[..., 0] * a.view(groups, -1, 1)).double() @ visible.mT.double())[..., None]
    coarse = alpha.to(dtype)
    fine = (alpha - coarse).to(dtype)
    inside = (coarse - coarse.mT).add_(fine).sub_(fine.mT).clamp_(max=0).exp_()
    leaving = (inside[..., -1:, :] * visible[:, :, None, -1:]).mT
    entering = coarse.exp()
    if resets is not None:
        entering *= (document == 0)[:, :, None, :, None]
    u = torch.mul(x, dt, out=torch.empty(x.shape, dtype=dtype, device=x.device))
    return _Piece(x, dt, u, b, c, visible, entering, inside, leaving)


def _by_head(x: Float[Tensor, "B Q H P"], groups: int) -> Float[Tensor, "B G R Q P"]:
    """A view with a matrix per head."""
    return x.unflatten(2, (groups, -1)).permute(0, 2, 3, 1, 4)


def _side_by_side(x: Float[Tensor, "B G R Q P"], factor: Float[Tensor, "B G R Q 1"]) -> Float[Tensor, "B G Q W"]:
    """factor · x with the heads of a group side by side (W = R P), so that one matrix product serves them all."""
    batch, groups, heads, tokens, width = x.shape
    out = torch.empty(batch, groups, tokens, heads, width, dtype=x.dtype, device=x.device)
    torch.mul(x, factor, out=out.transpose(2, 3))
    return out.flatten(3)


def _per_head(x: Float[Tensor, "B G Q W"], width: int) -> Float[Tensor, "B G R Q"]:
    """Sums over the columns of each of the heads that lie side by side (W = R · width)."""
    return x.unflatten(-1, (-1, width)).sum(-1).transpose(2, 3)
