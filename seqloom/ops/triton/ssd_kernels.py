"""The passes of the chunked scan, one Triton kernel each; notation as in `seqloom.ops.ssd`.

    decays      α of every position, summed in FP64 within its document and piece, kept as two FP32 parts
    states      forward over the pieces, one program per tile of a head's state: the state before each piece
    outputs     all pieces at once: y from the piece itself and from the state before it
    dstates     backward over the pieces: the gradient of the state after each piece
    gradients   all pieces at once: everything else
    step        one token, as in decoding

Programs of `outputs` and `gradients` own a piece and a group and walk over its heads, since c b^T is the same for all.

The gradient of log-decay t is the sum of what positions i >= t read of positions j < t. Within a piece it is summed
as just that, prefix over j and then sum over i, so that nothing has to cancel and FP32 is enough; what the state
brings in counts for the positions before it is read, what is left in it for those after.
"""

from typing import no_type_check

import triton
import triton.language as tl

from seqloom.ops.triton.tiles import dot


@triton.jit
@no_type_check
def _sum_anew(left, left_begins, right, right_begins):
    """Addition that forgets what lies before a position that begins a document."""
    return tl.where(right_begins != 0, right, left + right), left_begins | right_begins


@triton.jit
@no_type_check
def _fading(coarse, fine, later_coarse, later_fine):
    """exp(α_later − α) of two sums in two parts; never above 1."""
    return tl.exp(tl.minimum((later_coarse - coarse) + (later_fine - fine), 0.0))


@triton.jit
@no_type_check
def decays(
    dt, a, start, coarse, fine, T, H, dt_row, dt_time,
    Q: tl.constexpr, HEADS: tl.constexpr, DOCUMENTS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(1).to(tl.int64)
    head = tl.program_id(2) * HEADS + tl.arange(0, HEADS)
    t = tl.program_id(0).to(tl.int64) * Q + tl.arange(0, Q)
    there = (t < T)[:, None] & (head < H)[None, :]
    rate = tl.load(a + head, mask=head < H, other=0.0)
    step = tl.load(dt + row * dt_row + t[:, None] * dt_time + head[None, :], mask=there, other=0.0)
    log = (step * rate[None, :]).to(tl.float64)
    if DOCUMENTS:
        begins = tl.load(start + row * T + t, mask=t < T, other=-1) == t
        alpha, _ = tl.associative_scan((log, tl.broadcast_to(begins.to(tl.int32)[:, None], (Q, HEADS))), 0, _sum_anew)
    else:
        alpha = tl.cumsum(log, 0)
    rough = alpha.to(tl.float32)
    place = (row * H + head[None, :]) * T + t[:, None]
    tl.store(coarse + place, rough, mask=there)
    tl.store(fine + place, (alpha - rough.to(tl.float64)).to(tl.float32), mask=there)


@triton.jit
@no_type_check
def states(
    x, dt, b, coarse, fine, start, initial, before, final, T, H, R, pieces,
    x_row, x_time, x_head, b_row, b_time, b_group, dt_row, dt_time,
    P: tl.constexpr, N: tl.constexpr, Q: tl.constexpr, BP: tl.constexpr, BN: tl.constexpr,
    DOCUMENTS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    row, head = (tl.program_id(0) // H).to(tl.int64), tl.program_id(0) % H
    p, n, q = (
        tl.program_id(1) * BP + tl.arange(0, BP),
        tl.program_id(2) * BN + tl.arange(0, BN),
        tl.arange(0, Q).to(tl.int64),
    )
    cell = p[:, None] * N + n[None, :]
    in_p, in_n = p < P, n < N
    in_state = in_p[:, None] & in_n[None, :]
    x += row * x_row + head * x_head + p[None, :]
    b += row * b_row + (head // R) * b_group + n[None, :]
    dt += row * dt_row + head
    coarse += (row * H + head) * T
    fine += (row * H + head) * T
    state = tl.load(initial + (row * H + head) * P * N + cell, mask=in_state, other=0.0)
    for piece in range(pieces):
        place = ((row * pieces + piece) * H + head) * P * N
        tl.store(before + place + cell, state.to(before.dtype.element_ty), mask=in_state)
        t = piece * Q + q
        last = tl.minimum(piece * Q + Q, T) - 1
        there = t < T
        last_coarse, last_fine = tl.load(coarse + last), tl.load(fine + last)
        leaving = _fading(
            tl.load(coarse + t, mask=there, other=0.0), tl.load(fine + t, mask=there, other=0.0), last_coarse, last_fine
        )
        fade = tl.exp(last_coarse)
        if DOCUMENTS:
            begin = tl.load(start + row * T + last)
            leaving = tl.where(t >= begin, leaving, 0.0)
            fade = tl.where(begin < piece * Q, fade, 0.0)
        factor = leaving * tl.load(dt + t * dt_time, mask=there, other=0.0)
        xs = tl.load(x + t[:, None] * x_time, mask=there[:, None] & in_p[None, :], other=0.0)
        bs = tl.load(b + t[:, None] * b_time, mask=there[:, None] & in_n[None, :], other=0.0)
        xs = (xs * factor[:, None]).to(bs.dtype)
        state = state * fade + dot(tl.trans(xs), bs, PRECISION)
    tl.store(final + (row * H + head) * P * N + cell, state, mask=in_state)


@triton.jit
@no_type_check
def outputs(
    x, dt, b, c, skip, coarse, fine, start, before, y, T, H, R, pieces, heads,
    x_row, x_time, x_head, b_row, b_time, b_group, c_row, c_time, c_group, dt_row, dt_time,
    P: tl.constexpr, N: tl.constexpr, Q: tl.constexpr, BP: tl.constexpr, BN: tl.constexpr,
    DOCUMENTS: tl.constexpr, SKIP: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    piece, row = tl.program_id(0).to(tl.int64), (tl.program_id(1) // (H // R)).to(tl.int64)
    group = tl.program_id(1) % (H // R)
    q, p, n = tl.arange(0, Q), tl.arange(0, BP), tl.arange(0, BN)
    begin = piece * Q
    there, in_p, in_n = q < T - begin, p < P, n < N
    in_x, in_b = there[:, None] & in_p[None, :], there[:, None] & in_n[None, :]
    in_state = in_n[:, None] & in_p[None, :]
    b += row * b_row + begin * b_time + group * b_group
    c += row * c_row + begin * c_time + group * c_group
    bs = tl.load(b + q[:, None] * b_time + n[None, :], mask=in_b, other=0.0)
    cs = tl.load(c + q[:, None] * c_time + n[None, :], mask=in_b, other=0.0)
    visible = q[:, None] >= q[None, :]
    carries = q >= 0  # where the state before the piece is seen
    if DOCUMENTS:
        since = tl.load(start + row * T + begin + q, mask=there, other=0) - begin
        visible &= q[None, :] >= since[:, None]
        carries = since < 0
    scores = tl.where(visible, dot(cs, tl.trans(bs), PRECISION), 0.0)
    first = group * R + tl.program_id(2) * heads
    for head in range(first, first + heads):
        alpha = (row * H + head) * T + begin
        rough = tl.load(coarse + alpha + q, mask=there, other=0.0)
        rest = tl.load(fine + alpha + q, mask=there, other=0.0)
        step = tl.load(dt + row * dt_row + begin * dt_time + head + q * dt_time, mask=there, other=0.0)
        source = x + row * x_row + begin * x_time + head * x_head
        xs = tl.load(source + q[:, None] * x_time + p[None, :], mask=in_x, other=0.0)
        inside = _fading(rough[None, :], rest[None, :], rough[:, None], rest[:, None])
        weights = scores * inside * step[None, :]
        state = before + ((row * pieces + piece) * H + head) * P * N
        state = tl.load(state + p[None, :] * N + n[:, None], mask=in_state, other=0.0)
        entering = tl.where(carries, tl.exp(rough), 0.0)
        total = entering[:, None] * dot(cs, state, PRECISION) + dot(weights.to(xs.dtype), xs, PRECISION)
        if SKIP:
            total += tl.load(skip + head) * xs.to(tl.float32)
        target = y + ((row * T + begin) * H + head) * P
        tl.store(target + q[:, None] * (H * P) + p[None, :], total.to(y.dtype.element_ty), mask=in_x)


@triton.jit
@no_type_check
def dstates(
    dy, c, coarse, fine, start, before, dfinal, after, dinitial, faded, T, H, R, pieces,
    dy_row, dy_time, dy_head, c_row, c_time, c_group,
    P: tl.constexpr, N: tl.constexpr, Q: tl.constexpr, BP: tl.constexpr, BN: tl.constexpr,
    DOCUMENTS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Also ∂ log-decay through what the state of before still counts after each piece, per tile of the state."""
    row, head = (tl.program_id(0) // H).to(tl.int64), tl.program_id(0) % H
    p, n, q = (
        tl.program_id(1) * BP + tl.arange(0, BP),
        tl.program_id(2) * BN + tl.arange(0, BN),
        tl.arange(0, Q).to(tl.int64),
    )
    cell = p[:, None] * N + n[None, :]
    in_p, in_n = p < P, n < N
    in_state = in_p[:, None] & in_n[None, :]
    dy += row * dy_row + head * dy_head + p[None, :]
    c += row * c_row + (head // R) * c_group + n[None, :]
    coarse += (row * H + head) * T
    tiles = tl.num_programs(1) * tl.num_programs(2)
    faded += tl.program_id(1) * tl.num_programs(2) + tl.program_id(2)
    dstate = tl.load(dfinal + (row * H + head) * P * N + cell, mask=in_state, other=0.0)
    for back in range(pieces):
        piece = pieces - 1 - back
        index = (row * pieces + piece) * H + head
        tl.store(after + index * P * N + cell, dstate.to(after.dtype.element_ty), mask=in_state)
        state = tl.load(before + index * P * N + cell, mask=in_state, other=0.0).to(tl.float32)
        t = piece * Q + q
        last = tl.minimum(piece * Q + Q, T) - 1
        there = t < T
        fade = tl.exp(tl.load(coarse + last))
        entering = tl.exp(tl.load(coarse + t, mask=there, other=0.0))
        if DOCUMENTS:
            entering = tl.where(tl.load(start + row * T + t, mask=there, other=0) < piece * Q, entering, 0.0)
            fade = tl.where(tl.load(start + row * T + last) < piece * Q, fade, 0.0)
        dys = tl.load(dy + t[:, None] * dy_time, mask=there[:, None] & in_p[None, :], other=0.0)
        cs = tl.load(c + t[:, None] * c_time, mask=there[:, None] & in_n[None, :], other=0.0)
        dys = (dys * entering[:, None]).to(cs.dtype)
        tl.store(faded + index * tiles, fade * tl.sum(tl.sum(state * dstate, 1), 0))
        dstate = dstate * fade + dot(tl.trans(dys), cs, PRECISION)
    tl.store(dinitial + (row * H + head) * P * N + cell, dstate, mask=in_state)


@triton.jit
@no_type_check
def gradients(
    x, dt, b, c, skip, dy, coarse, fine, start, before, after, dx, ddt, dlog_passed, dlog_taken, db, dc, dskip,
    T, H, R, pieces, heads, taken_tile,
    x_row, x_time, x_head, b_row, b_time, b_group, c_row, c_time, c_group, dt_row, dt_time, dy_row, dy_time, dy_head,
    dx_row, dx_time, db_share, db_row, db_time,
    P: tl.constexpr, N: tl.constexpr, Q: tl.constexpr, BP: tl.constexpr, BN: tl.constexpr, BS: tl.constexpr,
    DOCUMENTS: tl.constexpr, SKIP: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """∂x, ∂b, ∂c (those of all heads of a program), ∂dt as far as it scales x, and two parts of ∂ log-decay: of what
    is passed on from each position, to be counted at the next, and of what is taken from the state before the piece.

    Two walks over the heads, so that not all of it lies in registers at once.
    """
    piece, row = tl.program_id(0).to(tl.int64), (tl.program_id(1) // (H // R)).to(tl.int64)
    group = tl.program_id(1) % (H // R)
    q, p, n = tl.arange(0, Q), tl.arange(0, BP), tl.arange(0, BN)
    begin = piece * Q
    last = tl.minimum(begin + Q, T) - 1
    there, in_p, in_n = q < T - begin, p < P, n < N
    in_x, in_b = there[:, None] & in_p[None, :], there[:, None] & in_n[None, :]
    b += row * b_row + begin * b_time + group * b_group
    c += row * c_row + begin * c_time + group * c_group
    x += row * x_row + begin * x_time
    dy += row * dy_row + begin * dy_time
    dt += row * dt_row + begin * dt_time
    bs = tl.load(b + q[:, None] * b_time + n[None, :], mask=in_b, other=0.0)
    cs = tl.load(c + q[:, None] * c_time + n[None, :], mask=in_b, other=0.0)
    visible = q[:, None] >= q[None, :]
    carries, stays = q >= 0, there  # where the state before is seen, and what the state after has seen
    if DOCUMENTS:
        since = tl.load(start + row * T + begin + q, mask=there, other=0) - begin
        visible &= q[None, :] >= since[:, None]
        carries = since < 0
        stays &= q >= tl.load(start + row * T + last) - begin
    scores = tl.where(visible, dot(cs, tl.trans(bs), PRECISION), 0.0)
    dscores = tl.zeros([Q, Q], tl.float32)
    first = group * R + tl.program_id(2) * heads
    for head in range(first, first + heads):
        alpha = (row * H + head) * T
        rough = tl.load(coarse + alpha + begin + q, mask=there, other=0.0)
        rest = tl.load(fine + alpha + begin + q, mask=there, other=0.0)
        step = tl.load(dt + head + q * dt_time, mask=there, other=0.0)
        xs = tl.load(x + head * x_head + q[:, None] * x_time + p[None, :], mask=in_x, other=0.0)
        dys = tl.load(dy + head * dy_head + q[:, None] * dy_time + p[None, :], mask=in_x, other=0.0)
        inside = tl.where(visible, _fading(rough[None, :], rest[None, :], rough[:, None], rest[:, None]), 0.0)
        leaving = _fading(rough, rest, tl.load(coarse + alpha + last), tl.load(fine + alpha + last))
        leaving = tl.where(stays, leaving, 0.0)

        dstate = after + ((row * pieces + piece) * H + head) * P * N
        dstate = tl.load(dstate + p[None, :] * N + n[:, None], mask=in_n[:, None] & in_p[None, :], other=0.0)
        du = leaving[:, None] * dot(bs, dstate, PRECISION)
        left = tl.cumsum(step * tl.sum(du * xs, 1), 0)
        du += dot(tl.trans((scores * inside).to(dys.dtype)), dys, PRECISION)
        tl.store(ddt + alpha + begin + q, tl.sum(du * xs, 1), mask=there)
        du *= step[:, None]
        if SKIP:
            du += tl.load(skip + head) * dys.to(tl.float32)
            tl.store(dskip + (row * pieces + piece) * H + head, tl.sum(tl.sum(xs.to(tl.float32) * dys, 1), 0))
        target = dx + row * dx_row + begin * dx_time + head * P
        tl.store(target + q[:, None] * dx_time + p[None, :], du.to(dx.dtype.element_ty), mask=in_x)

        dweights = dot(dys, tl.trans(xs), PRECISION) * inside * step[None, :]
        dscores += dweights
        read = tl.where(q[:, None] > q[None, :], tl.cumsum(dweights * scores, 1), 0.0)
        # Entry j counts for the log-decay of position j + 1; the last has none, and fills the place of the first.
        passed = tl.where(q < Q - 1, tl.sum(read, 0) + left, 0.0)
        following = (q + 1) % Q
        tl.store(dlog_passed + alpha + begin + following, passed, mask=following < T - begin)

    narrow = dscores.to(bs.dtype)
    for tile in range(tl.cdiv(N, BS)):
        m = tile * BS + tl.arange(0, BS)
        in_rows, in_tile = there[:, None] & (m < N)[None, :], in_p[:, None] & (m < N)[None, :]
        b_tile = tl.load(b + q[:, None] * b_time + m[None, :], mask=in_rows, other=0.0)
        c_tile = tl.load(c + q[:, None] * c_time + m[None, :], mask=in_rows, other=0.0)
        dbs, dcs = dot(tl.trans(narrow), c_tile, PRECISION), dot(narrow, b_tile, PRECISION)
        for head in range(first, first + heads):
            alpha = (row * H + head) * T
            rough = tl.load(coarse + alpha + begin + q, mask=there, other=0.0)
            rest = tl.load(fine + alpha + begin + q, mask=there, other=0.0)
            step = tl.load(dt + head + q * dt_time, mask=there, other=0.0)
            leaving = _fading(rough, rest, tl.load(coarse + alpha + last), tl.load(fine + alpha + last))
            leaving = tl.where(stays, leaving, 0.0)
            entering = tl.where(carries, tl.exp(rough), 0.0)
            xs = tl.load(x + head * x_head + q[:, None] * x_time + p[None, :], mask=in_x, other=0.0)
            dys = tl.load(dy + head * dy_head + q[:, None] * dy_time + p[None, :], mask=in_x, other=0.0)
            place = ((row * pieces + piece) * H + head) * P * N
            dstate = tl.load(after + place + p[:, None] * N + m[None, :], mask=in_tile, other=0.0)
            dbs += (leaving * step)[:, None] * dot(xs, dstate, PRECISION)
            state = tl.load(before + place + p[:, None] * N + m[None, :], mask=in_tile, other=0.0)
            taken = entering[:, None] * dot(dys, state, PRECISION)
            dcs += taken
            taken = tl.cumsum(tl.sum(taken * c_tile, 1), 0, reverse=True)
            tl.store(dlog_taken + tile * taken_tile + alpha + begin + q, taken, mask=there)
        place = tl.program_id(2).to(tl.int64) * db_share + row * db_row + begin * db_time + group * N
        tl.store(db + place + q[:, None] * db_time + m[None, :], dbs.to(db.dtype.element_ty), mask=in_rows)
        tl.store(dc + place + q[:, None] * db_time + m[None, :], dcs.to(dc.dtype.element_ty), mask=in_rows)


@triton.jit
@no_type_check
def step(
    x, dt, a, b, c, skip, state, y, after, H, R, x_row, x_head, b_row, b_group, c_row, c_group, dt_row,
    P: tl.constexpr, N: tl.constexpr, BP: tl.constexpr, BN: tl.constexpr, SKIP: tl.constexpr,
):  # fmt: skip
    row, head = (tl.program_id(0) // H).to(tl.int64), tl.program_id(0) % H
    p, n = tl.program_id(1) * BP + tl.arange(0, BP), tl.arange(0, BN)
    there = (p < P)[:, None] & (n < N)[None, :]
    cell = (row * H + head) * P * N + p[:, None] * N + n[None, :]
    size = tl.load(dt + row * dt_row + head)
    xs = tl.load(x + row * x_row + head * x_head + p, mask=p < P, other=0.0).to(tl.float32)
    bs = tl.load(b + row * b_row + (head // R) * b_group + n, mask=n < N, other=0.0).to(tl.float32)
    cs = tl.load(c + row * c_row + (head // R) * c_group + n, mask=n < N, other=0.0).to(tl.float32)
    value = tl.load(state + cell, mask=there, other=0.0) * tl.exp(size * tl.load(a + head))
    value += (size * xs)[:, None] * bs[None, :]
    tl.store(after + cell, value, mask=there)
    result = tl.sum(value * cs[None, :], 1)
    if SKIP:
        result += tl.load(skip + head) * xs
    tl.store(y + (row * H + head) * P + p, result.to(y.dtype.element_ty), mask=p < P)
