"""A recurrent toy that answers the engine's contract and nothing more: the engine must not need a hybrid model.

The state decays and mixes in each token; the draft block does the same from the state it is given, but adds an error,
so that some of its guesses are wrong. Its memory is what it was given, so that tests can look inside. All sums are made
row by row, so that the same numbers come out in every batch and tests may compare exactly.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from seqloom.nn.cache import HybridCache
from seqloom.nn.stores import Room

V, D = 11, 16
BOS, EOS = 1, 2


class RowState:
    """A tensor with one entry a row, replaced and never written in place."""

    def __init__(self, value: Tensor) -> None:
        self.value = value

    def follow(self, states: Tensor) -> None:
        self.value = states[:, -1]

    def append(self, entries: Tensor) -> None:
        self.value = torch.cat([self.value, entries], dim=1)

    def snapshot(self) -> Tensor:
        return self.value

    def restore(self, mark: Tensor) -> None:
        self.value = mark

    def select(self, rows: Tensor) -> None:
        self.value = self.value[rows]

    def join(self, others: list[Any]) -> None:
        self.value = torch.cat([self.value, *(other.value for other in others)])

    @property
    def nbytes(self) -> int:
        return self.value.nbytes


class ToySlots:
    """The recurrent state of all rows, full of NaN until it is cleared; of a guessed call, that after each token."""

    def __init__(self, rows: int) -> None:
        self.states = torch.full((rows, D), torch.nan)
        self.trail: Tensor | None = None

    def rows(self, first: int, count: int, guessed: bool, behind: int) -> "SlotRows":
        assert self.trail is None, "keep comes first"
        return SlotRows(self, slice(first, first + count), guessed)

    def clear(self, row: int) -> None:
        self.states[row] = 0

    def move(self, source: int, target: int) -> None:
        self.states[target] = self.states[source]
        self.states[source] = torch.nan

    def save(self, row: int) -> Tensor:
        return self.states[row].clone()

    def load(self, row: int, saved: Tensor) -> None:
        self.states[row] = saved

    def keep(self, first: int, accepted: list[int]) -> None:
        assert self.trail is not None and len(self.trail) == len(accepted)  # noqa: PT018
        for row, count in enumerate(accepted):
            self.states[first + row] = self.trail[row, count - 1]
        self.trail = None

    @property
    def nbytes(self) -> int:
        return self.states.nbytes


class SlotRows:
    def __init__(self, slots: ToySlots, rows: slice, guessed: bool) -> None:
        self.slots, self.rows, self.guessed = slots, rows, guessed

    @property
    def value(self) -> Tensor:
        return self.slots.states[self.rows].clone()

    def follow(self, states: Tensor) -> None:
        self.slots.states[self.rows] = states[:, -1]
        if self.guessed:
            self.slots.states[self.rows] = torch.nan
            self.slots.trail = states


class ToyPages:
    """Entries of all rows, in pages."""

    def __init__(self, pages: int, page_tokens: int) -> None:
        self.entries = torch.full((pages + 1, page_tokens, D + 1), torch.nan)

    def rows(self, first: int, count: int, tables: Any) -> "PageRows":
        assert len(tables.pages) == count
        return PageRows(self.entries, tables)

    def copy_page(self, source: int, target: int) -> None:
        self.entries[target] = self.entries[source]

    def of(self, pages: list[int], tokens: int) -> Tensor:
        return self.entries[pages].flatten(0, 1)[:tokens]

    def clear(self, row: int) -> None: ...
    def move(self, source: int, target: int) -> None: ...
    def save(self, row: int) -> None: ...
    def load(self, row: int, saved: None) -> None: ...
    def keep(self, first: int, accepted: list[int]) -> None: ...

    @property
    def nbytes(self) -> int:
        return self.entries.nbytes


class PageRows:
    def __init__(self, entries: Tensor, tables: Any) -> None:
        self.entries, self.tables = entries, tables

    def append(self, entries: Tensor) -> None:
        size = self.entries.shape[1]
        for table, length, row in zip(self.tables.pages.tolist(), self.tables.lengths.tolist(), entries, strict=True):
            for place, entry in enumerate(row, length):
                assert not self.entries[table[place // size], : place % size].isnan().any(), "a place was left out"
                self.entries[table[place // size], place % size] = entry


class DraftBlock:
    """Remembers every (hidden state, next token) it was given."""

    def new_states(self, batch: int) -> list[RowState | None]:
        return [RowState(torch.zeros(batch, 0, D + 1)), None]


class ToyModel(nn.Module):
    """h_t = tanh(0.8 h_{t-1} + E[token_t]); logits = 3 W h + bias, which makes the special tokens rare."""

    vocab_size = V

    def __init__(self, draft_error: float = 0.5) -> None:
        super().__init__()
        random = torch.Generator().manual_seed(24)
        self.embedding = nn.Parameter(torch.randn(V, D, generator=random))
        self.readout = nn.Parameter(torch.randn(V, D, generator=random))
        self.bias = torch.tensor([-30.0, -30.0, -8.0] + [0.0] * (V - 3))
        self.error = draft_error * torch.randn(D, generator=random)
        self.mtp = DraftBlock()
        self.forward_tokens = 0

    def new_states(self, batch: int) -> list[RowState | None]:
        return [None, RowState(torch.zeros(batch, D))]

    def new_cache(self, rows: int, pages: int, page_tokens: int, ahead: int) -> HybridCache:
        self.pages = ToyPages(pages, page_tokens)
        draft = [] if self.mtp is None else [self.pages, None]
        return HybridCache([None, ToySlots(rows)], draft, Room(rows, pages, page_tokens, ahead))

    def hidden(
        self, tokens: Tensor, documents: None = None, states: list[Any] | None = None
    ) -> tuple[Tensor, list[Any]]:
        assert states is not None
        h, out = states[1].value, []
        for token in tokens.unbind(1):
            h = self._cell(h, token)
            out.append(h)
        states[1].follow(torch.stack(out, dim=1))
        self.forward_tokens += tokens.shape[1]
        return torch.stack(out, dim=1), []

    def remember(self, tokens: Tensor, states: list[Any]) -> None:
        self.hidden(tokens, states=states)

    def head(self, hidden: Tensor) -> Tensor:
        # Not a matrix product: the same bits in every batch, so that tests may compare exactly.
        return 3 * (self.readout * hidden[..., None, :]).sum(-1) + self.bias

    def head_of(self, tokens: Tensor) -> None:
        """None: all tokens are few enough."""

    def decoder(self, rows: int, tokens: int, states: list[Any]) -> None:
        """None: a step is made of `hidden` and `head`."""

    def guesser(self, head: object, tokens: Tensor) -> None:
        """None: each guess is made by `draft`."""

    def draft(self, hidden: Tensor, next_tokens: Tensor, states: list[Any]) -> Tensor:
        given = torch.cat([hidden, next_tokens[..., None].float()], dim=-1)
        states[0].append(given)
        return self._cell(hidden, next_tokens) + self.error

    def _cell(self, h: Tensor, token: Tensor) -> Tensor:
        return torch.tanh(0.8 * h + self.embedding[token])


class ToyTokenizer:
    """One letter a token: 'a' is 3, 'b' is 4 and so on; 0, 1 and 2 are special and have no text."""

    bos, eos, size = BOS, EOS, V

    def encode(self, text: str) -> list[int]:
        return [ord(letter) - ord("a") + 3 for letter in text]

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(chr(token - 3 + ord("a")) for token in ids if token >= 3)
