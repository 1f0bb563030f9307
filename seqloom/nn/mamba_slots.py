"""What a Mamba-2 layer remembers of all rows of an engine: a slot of fixed size for each, changed in place.

A guess is a token that may turn out wrong. The stored state stops before the guesses of a call, whose raw inputs are
stored instead. `keep` says how many count, and the next call begins with those, in the same pass over the state. So
going back costs nothing, reading and writing the state is all the traffic of a step, and since the same numbers meet
in the same order, an answer has the same bits whether and how its tokens were guessed.

A slot holds, for A guesses at most, a state, the convolution's inputs (the last of the stored state, then guesses), and
the step sizes of guesses. Narrow states are rounded after every token by its number in its own row (`nn.narrow`).
Papers: Mamba-2; replay as TensorRT-LLM and SGLang do it.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor

from seqloom.core.seeds import derive
from seqloom.nn.large_pages import empty
from seqloom.nn.narrow import Narrow, narrow, rounding_noise, stochastic, widen
from seqloom.nn.right_aligned import shifted, where_held
from seqloom.nn.state_formats import StateFormats
from seqloom.ops.causal_conv import causal_conv
from seqloom.ops.kernels import chosen
from seqloom.ops.ssd import ssd


class SlotShape(NamedTuple):
    """Sizes of a mixer: `groups` of heads share B and C; `chunk` is that of a scan that need not be invariant."""

    heads: int
    head_width: int
    state_width: int
    groups: int
    taps: int
    chunk: int

    @property
    def inner(self) -> int:
        return self.heads * self.head_width

    @property
    def channels(self) -> int:
        return self.inner + 2 * self.groups * self.state_width


class SavedSlot(NamedTuple):
    """A copy of one row's memory."""

    window: Float[Tensor, "V+A C"]
    guesses: Float32[Tensor, "A H"]
    pending: Int64[Tensor, ""]
    position: Int64[Tensor, ""]
    codes: Tensor
    scales: Float32[Tensor, "H P _"] | None


class MambaSlots:
    """The slots of one layer."""

    def __init__(
        self,
        rows: int,
        shape: SlotShape,
        dtype: torch.dtype,
        device: torch.device,
        formats: StateFormats,
        place: str,
        ahead: int,
    ) -> None:
        """
        Args:
            dtype: of the activations.
            place: of the layer in its model; stochastic rounding draws other numbers in every place.
            ahead: most guesses of a call, for each row.
        """
        self.shape, self.format, self.key = shape, formats.ssm, derive(formats.seed, "ssm_state", place)
        # A row is cleared or loaded before its first use, so memory that nobody uses is never touched.
        self.window = torch.empty(rows, shape.taps - 1 + ahead, shape.channels, dtype=dtype, device=device)
        self.guesses = torch.empty(rows, ahead, shape.heads, device=device)
        self.pending: Int64[Tensor, "R"] = torch.zeros(rows, dtype=torch.int64, device=device)
        self.positions: Int64[Tensor, "R"] = torch.zeros(rows, dtype=torch.int64, device=device)
        states = (shape.heads, shape.head_width, shape.state_width)
        codes, scales = self.rounded(torch.empty(0, *states, device=device), self.positions[:0])
        self.codes = empty(rows, *states, dtype=codes.dtype, device=device)
        self.scales = None if scales is None else torch.empty(rows, *scales.shape[1:], device=device)
        self._native: Any = None

    def rows(self, first: int, count: int, guessed: bool = False, behind: int | None = None) -> "MambaRows":
        """A view for calls on rows first, first + 1, ...

        Args:
            guessed: all tokens of a call but the first of each row are guesses; `keep` says which count.
            behind: no row has more guesses to catch up with; None asks them, which stalls a GPU.
        """
        return MambaRows(self, first, count, guessed, behind)

    def clear(self, row: int) -> None:
        """Forget everything of a row."""
        for part in self.parts:
            part[row].zero_()

    def move(self, source: int, target: int) -> None:
        """Give a row's memory to another row."""
        for part in self.parts:
            part[target] = part[source]

    def save(self, row: int) -> SavedSlot:
        """A copy of a row's memory, for `load`."""
        scales = None if self.scales is None else self.scales[row].clone()
        window, guesses, pending, position, codes = (part[row].clone() for part in self.parts[:5])
        return SavedSlot(window, guesses, pending, position, codes, scales)

    def load(self, row: int, saved: SavedSlot) -> None:
        """Make a row what another, or it, was when it was saved."""
        for part, mine in zip(self.parts, saved, strict=False):
            if mine is not None:
                part[row] = mine

    def keep(self, first: int, accepted: list[int]) -> None:
        """After a guessed call on rows first, first + 1, ...: so many of each row's tokens count, the first always."""
        assert all(1 <= count <= 1 + self.ahead for count in accepted), (accepted, self.ahead)
        kept = [count - 1 for count in accepted]
        if self.pending.is_cpu:
            self.pending.numpy()[first : first + len(kept)] = kept  # a call of torch takes twenty times as long
        else:
            self.pending[first : first + len(kept)] = torch.tensor(kept, device=self.pending.device)

    @property
    def ahead(self) -> int:
        return self.guesses.shape[1]

    @property
    def nbytes(self) -> int:
        """Of all slots."""
        return sum(part.nbytes for part in self.parts)

    @property
    def native(self) -> Any:
        """What the native functions are told of this memory."""
        if self._native is None:
            from seqloom.ops.native.mamba_rows import Remembered, slots

            remembered = Remembered(self.window, self.guesses, self.pending, self.positions, self.codes, self.scales)
            self._native = slots(remembered, self.shape.groups, self.format, self.key)
        return self._native

    def rounded(self, ssm: Float32[Tensor, "B H P N"], positions: Int64[Tensor, "B"]) -> Narrow:
        """States as they are stored after each row's `positions` tokens."""
        if self.format == "fp32":
            return Narrow(ssm, None)
        noise = rounding_noise(self.key, positions, ssm.shape[1:], ssm.device) if stochastic(self.format) else None
        return narrow(ssm, self.format, noise)

    def put(self, rows: slice, states: Narrow) -> None:
        """Store the states of some rows."""
        self.codes[rows] = states.codes
        if self.scales is not None and states.scales is not None:
            self.scales[rows] = states.scales

    @property
    def parts(self) -> tuple[Tensor, ...]:
        parts = (self.window, self.guesses, self.pending, self.positions, self.codes)
        return parts if self.scales is None else (*parts, self.scales)


class MambaRows:
    """Some rows' memory during a call, which leaves there what it has met; arguments as in `MambaSlots.rows`."""

    def __init__(self, slots: MambaSlots, first: int, count: int, guessed: bool, behind: int | None) -> None:
        self.slots, self.first, self.count, self.guessed, self.behind = slots, first, count, guessed, behind

    def mix(
        self,
        xbc: Float[Tensor, "B T C"],
        dt: Float[Tensor, "B T H"],
        taps: Float[Tensor, "C W"],
        bias: Float[Tensor, "C"],
        dt_bias: Float[Tensor, "H"],
        a_log: Float[Tensor, "H"],
        skip: Float[Tensor, "H"],
    ) -> Float[Tensor, "B T I"]:
        """Convolution, scan and the skip, between the projection and the gate."""
        slots, weights = self.slots, (taps, bias, dt_bias, a_log, skip)
        assert len(xbc) == self.count, (len(xbc), self.count)
        assert not self.guessed or xbc.shape[1] <= 1 + slots.ahead, (xbc.shape, slots.ahead)
        assert xbc.dtype == slots.window.dtype, (xbc.dtype, slots.window.dtype)
        if all(chosen(op, xbc.device, xbc.dtype, xbc, dt, *weights) == "native" for op in ("ssd", "causal_conv")):
            from seqloom.ops.native.mamba_rows import mamba_mix

            return mamba_mix(xbc, dt, *weights, slots.native, self.first, self.guessed)
        if not xbc.numel():
            return xbc.new_empty(*xbc.shape[:2], slots.shape.inner)
        return self._mix(xbc, dt, *weights)

    def _mix(
        self,
        xbc: Float[Tensor, "B T C"],
        dt: Float[Tensor, "B T H"],
        taps: Float[Tensor, "C W"],
        bias: Float[Tensor, "C"],
        dt_bias: Float[Tensor, "H"],
        a_log: Float[Tensor, "H"],
        skip: Float[Tensor, "H"],
    ) -> Float[Tensor, "B T I"]:
        """The portable form: rows laid out as in `nn.right_aligned`."""
        slots, shape, mine = self.slots, self.slots.shape, slice(self.first, self.first + self.count)
        window, guesses, pending, positions = (part[mine] for part in slots.parts[:4])
        behind = int(pending.max()) if self.behind is None else self.behind
        empty = behind - pending  # columns of each row that hold nothing
        reach, fresh = shape.taps - 1, xbc.shape[1]
        kept = behind + (1 if self.guessed else fresh)  # of all columns, those whose state is stored
        known, steps = shifted(window, reach + behind, empty), shifted(guesses, behind, empty)
        held = torch.arange(behind, device=xbc.device) >= empty[:, None]
        steps = torch.cat([torch.where(held[..., None], steps, -torch.inf), dt.float()], 1)
        inputs = torch.cat([known, xbc], 1)
        mixed, _ = causal_conv(inputs[:, reach:], taps, bias, inputs[:, :reach])
        u, b, c = mixed.split((shape.inner, *[shape.groups * shape.state_width] * 2), -1)
        u = u.unflatten(-1, (shape.heads, -1))
        b, c = (part.unflatten(-1, (shape.groups, -1)) for part in (b, c))
        scan = partial(ssd, a=-torch.exp(a_log.float()), chunk=shape.chunk, dt_bias=dt_bias, skip=skip)
        state = Narrow(slots.codes[mine], None if slots.scales is None else slots.scales[mine])
        outputs = []
        for at in self._spans(kept, behind + fresh):
            y, ssm = scan(x=u[:, at], dt=steps[:, at], b=b[:, at], c=c[:, at], state=widen(state))
            after = slots.rounded(ssm, positions + at.stop - empty)
            state = after if at.stop > behind or slots.format == "fp32" else where_held(at.stop > empty, after, state)
            outputs.append(y)
            if at.stop == kept:
                slots.put(mine, state)
        window[:, : reach + behind + fresh - kept] = inputs[:, kept:]
        guesses[:, : behind + fresh - kept] = steps[:, kept:]
        positions += kept - empty
        pending.zero_()
        return torch.cat(outputs, 1)[:, behind:].flatten(-2)

    def _spans(self, kept: int, columns: int) -> Iterator[slice]:
        """Columns that the scan takes at once: one after the other where the state is rounded between them."""
        ends = (kept, columns) if self.slots.format == "fp32" else range(1, columns + 1)
        start = 0
        for end in ends:
            if end > start:
                yield slice(start, end)
            start = end
