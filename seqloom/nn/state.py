"""What a layer remembers between calls, and the five things anyone may do with it.

Prefill in chunks, prefix reuse, speculative verification, beam search and batching use only this contract.
A model's state is one list with an entry per layer, `None` where a layer remembers nothing.

A snapshot costs nothing: keys and values are only ever appended, so their mark is the length; recurrent tensors are
replaced, and written in place only while no mark holds them, so their mark is the tensor itself.
"""

from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor


@runtime_checkable
class LayerState(Protocol):
    """The memory of one layer for a batch of rows."""

    def snapshot(self) -> Any:
        """A mark of the present that `restore` accepts any number of times."""
        ...

    def restore(self, mark: Any) -> None:
        """Go back to a mark taken earlier on this state (and before any later `select` or `join`)."""
        ...

    def select(self, rows: Int[Tensor, "R"]) -> None:
        """Keep these rows, in this order; a row may be dropped or repeated."""
        ...

    def join(self, others: list[Any]) -> None:
        """Append the rows of other states of the same kind and layer below the rows of this one."""
        ...

    @property
    def nbytes(self) -> int:
        """Bytes of memory that the remembered content occupies (reserved but unused room not counted)."""
        ...


class KVState:
    """Keys and values of one attention layer; each row has its own length.

    Room grows by doubling, so appending costs amortised O(1) copies per token.
    """

    def __init__(self, batch: int, kv_heads: int, head_width: int, dtype: torch.dtype, device: torch.device) -> None:
        self._keys = torch.zeros(batch, kv_heads, 0, head_width, dtype=dtype, device=device)
        self._values = torch.zeros_like(self._keys)
        self.lengths: Int[Tensor, "B"] = torch.zeros(batch, dtype=torch.int64)  # on the CPU: it steers Python code

    def append(
        self, keys: Float[Tensor, "B G T K"], values: Float[Tensor, "B G T K"]
    ) -> tuple[Float[Tensor, "B G S K"], Float[Tensor, "B G S K"]]:
        """Add T tokens to every row; returns all keys and values up to the longest row.

        Columns at or beyond a row's length hold leftovers; the caller masks them with `lengths`.
        """
        return self._write(keys, values)

    def _write(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """`append` of what is already as it is stored."""
        tokens, before = keys.shape[2], self._grow(keys.shape[2])
        all_keys, all_values = self._keys, self._values
        lengths = before.tolist()
        shortest, longest = min(lengths), max(lengths) + tokens
        if shortest + tokens == longest:
            all_keys.narrow(2, shortest, tokens).copy_(keys)
            all_values.narrow(2, shortest, tokens).copy_(values)
        else:
            columns = (before[:, None] + torch.arange(tokens)).to(keys.device)
            columns = columns[:, None, :, None].expand_as(keys)
            all_keys.scatter_(2, columns, keys.to(all_keys.dtype))
            all_values.scatter_(2, columns, values.to(all_values.dtype))
        return all_keys.narrow(2, 0, longest), all_values.narrow(2, 0, longest)

    def extend(self, tokens: int) -> tuple[Float[Tensor, "B G R K"], Float[Tensor, "B G R K"], Int[Tensor, "B"]]:
        """Make room for T more tokens in every row, which the caller fills in.

        Returns:
            keys, values, and the column of each row's first new token.
        """
        before = self._grow(tokens)
        return self._keys, self._values, before

    def _grow(self, tokens: int) -> Int[Tensor, "B"]:
        """Make every row so much longer; gives the lengths before."""
        before = self.lengths
        self._reserve(max(before.tolist()) + tokens)
        self.lengths = before + tokens
        return before

    def snapshot(self) -> Int[Tensor, "B"]:
        return self.lengths

    def restore(self, mark: Int[Tensor, "B"]) -> None:
        self.lengths = mark

    def select(self, rows: Int[Tensor, "R"]) -> None:
        self._keys, self._values = self._keys[rows], self._values[rows]
        self.lengths = self.lengths[rows.cpu()]

    def join(self, others: list["KVState"]) -> None:
        states = [self, *others]
        room = max(state._keys.shape[2] for state in states)
        for state in states:
            state._reserve(room)
        self._keys = torch.cat([state._keys[:, :, :room] for state in states])
        self._values = torch.cat([state._values[:, :, :room] for state in states])
        self.lengths = torch.cat([state.lengths for state in states])

    @property
    def dtype(self) -> torch.dtype:
        return self._keys.dtype

    @property
    def nbytes(self) -> int:
        per_token = 2 * self._keys.shape[1] * self._keys.shape[3] * self._keys.element_size()
        return int(self.lengths.sum()) * per_token

    def _reserve(self, tokens: int) -> None:
        room = self._keys.shape[2]
        if tokens <= room:
            return
        grow = max(tokens, 2 * room, 64) - room
        self._keys = torch.nn.functional.pad(self._keys, (0, 0, 0, grow))
        self._values = torch.nn.functional.pad(self._values, (0, 0, 0, grow))


class MambaState:
    """Convolution window and SSM state of one Mamba-2 layer; a fixed number of bytes per row."""

    def __init__(self, window: Float[Tensor, "B W C"], ssm: Float[Tensor, "B H P N"]) -> None:
        self.window = window
        self.ssm = ssm
        self._marked = True

    def snapshot(self) -> tuple[Tensor, Tensor]:
        self._marked = True
        return self.window, self.ssm

    def restore(self, mark: tuple[Tensor, Tensor]) -> None:
        self._marked = True
        self.window, self.ssm = mark

    def select(self, rows: Int[Tensor, "R"]) -> None:
        self.window, self.ssm = self.window[rows], self.ssm[rows]

    def join(self, others: list["MambaState"]) -> None:
        self.window = torch.cat([self.window, *(other.window for other in others)])
        self.ssm = torch.cat([self.ssm, *(other.ssm for other in others)])

    def room_for_next(self) -> Float[Tensor, "B H P N"]:
        """Memory for the SSM state that follows: that of the present one, unless someone may hold it."""
        if not self._marked:
            return self.ssm
        self._marked = False
        return torch.empty_like(self.ssm)

    @property
    def nbytes(self) -> int:
        return self.window.nbytes + self.ssm.nbytes
