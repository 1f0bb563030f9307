"""A recurrent toy that answers the engine's contract and nothing more: the engine must not need a hybrid model.

The state decays and mixes in each token; the draft block does the same from the state it is given, but adds an error,
so that some of its guesses are wrong. Its memory is the list of what it was given, so that tests can look inside.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

V, D = 11, 16
BOS, EOS = 1, 2


class RowState:
    """A tensor with one entry a row, replaced and never written in place."""

    def __init__(self, value: Tensor) -> None:
        self.value = value

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


class DraftBlock:
    """Remembers every (hidden state, next token) it was given."""

    def __init__(self) -> None:
        self.memories: list[RowState] = []

    def new_states(self, batch: int) -> list[RowState | None]:
        self.memories.append(RowState(torch.zeros(batch, 0, D + 1)))
        return [self.memories[-1], None]


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

    def hidden(
        self, tokens: Tensor, documents: None = None, states: list[Any] | None = None
    ) -> tuple[Tensor, list[Any]]:
        assert states is not None
        h, out = states[1].value, []
        for token in tokens.unbind(1):
            h = self._cell(h, token)
            out.append(h)
        states[1].value = h
        self.forward_tokens += tokens.shape[1]
        return torch.stack(out, dim=1), []

    def remember(self, tokens: Tensor, states: list[Any]) -> None:
        self.hidden(tokens, states=states)

    def head(self, hidden: Tensor) -> Tensor:
        # Not a matrix product: the same bits in every batch, so that tests may compare exactly.
        return 3 * (self.readout * hidden[..., None, :]).sum(-1) + self.bias

    def draft(self, hidden: Tensor, next_tokens: Tensor, states: list[Any]) -> Tensor:
        given = torch.cat([hidden, next_tokens[..., None].float()], dim=-1)
        states[0].value = torch.cat([states[0].value, given], dim=1)
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
