"""Recurrent layers over whole utterances, one or two directions, with batch normalization of the input term.

    simple RNN    h_t = s(B(W x_t) + U h_{t-1})                    s(x) = min(max(x, 0), clip)
    GRU           z = σ(B(W_z x) + U_z h)    r = σ(B(W_r x) + U_r h)
                  n = f(B(W_n x) + r ∘ (U_n h))                    h' = (1 - z) ∘ h + z ∘ n

Two directions are summed, h_t = h→_t + h←_t, or put side by side. They share W unless asked otherwise: only then do the
published sizes add up. The offset β of B serves as the bias. Deep Speech 2, sections 3.1, 3.2 and 3.4.
"""

from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from seqloom.nn.linear import Linear
from seqloom.nn.sequence_norm import SequenceNorm
from seqloom.ops.recurrence import gru, rnn

Kind = Literal["rnn", "gru"]
Directions = Literal["forward", "sum", "concat"]
GATES: dict[Kind, int] = {"rnn": 1, "gru": 3}


class Recurrent(nn.Module):
    """One recurrent layer."""

    def __init__(
        self,
        in_width: int,
        width: int,
        kind: Kind = "rnn",
        directions: Directions = "sum",
        inputs: Literal["shared", "separate"] = "shared",
        norm: Literal["batch", "input", "none"] = "batch",
        *,
        clip: float = 20.0,
        candidate: Literal["tanh", "clipped_relu"] = "tanh",
        momentum: float = 0.1,
    ) -> None:
        """
        Args:
            inputs: of two directions, whether one W serves both.
            norm: of W x ("batch"), of x ("input"), or none; without the first, W x gets a bias.
            clip: upper end of the clipped ReLU of a simple RNN.
            candidate: what a GRU's new content goes through.
            momentum: of the running statistics.
        """
        super().__init__()
        self.kind, self.directions, self.clip, self.candidate = kind, directions, clip, candidate
        both = directions != "forward"
        self.fed = 2 if both and inputs == "separate" else 1  # directions with an input term of their own
        rows = GATES[kind] * width
        self.input = Linear(in_width, self.fed * rows)
        self.norm = SequenceNorm(self.fed * rows, momentum=momentum) if norm == "batch" else None
        self.input_norm = SequenceNorm(in_width, momentum=momentum) if norm == "input" else None
        self.bias = nn.Parameter(torch.zeros(self.fed * rows)) if norm != "batch" else None
        self.recurrent = nn.Parameter(torch.empty(rows, width))
        self.recurrent_back = nn.Parameter(torch.empty(rows, width)) if both else None
        self._initialise(width)

    @property
    def out_width(self) -> int:
        """Values a step gives."""
        return self.recurrent.shape[1] * (2 if self.directions == "concat" else 1)

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        lengths: Int[Tensor, "B"],
        valid: Float[Tensor, "B T 1"],
        initial: Float[Tensor, "B H"] | None = None,
    ) -> Float[Tensor, "B T W"]:
        """States of every step; zero beyond a row's length.

        Args:
            valid: 1 at steps of an utterance, 0 beyond.
            initial: state before the first step, for models that hear the past only; the last one of an earlier call
                continues it.
        """
        if self.input_norm is not None:
            x = self.input_norm(x, valid)
        term = self.input(x).float()
        term = self.norm(term, valid) if self.norm is not None else term + self.bias
        terms = term.chunk(self.fed, -1)
        forward = self._run(terms[0], self.recurrent, lengths, initial, reverse=False)
        if self.recurrent_back is None:
            return forward
        assert initial is None, "the second direction begins at the end"
        back = self._run(terms[-1], self.recurrent_back, lengths, None, reverse=True)
        return forward + back if self.directions == "sum" else torch.cat([forward, back], -1)

    def _run(
        self,
        term: Float[Tensor, "B T G"],
        weight: Float[Tensor, "G H"],
        lengths: Int[Tensor, "B"],
        initial: Float[Tensor, "B H"] | None,
        *,
        reverse: bool,
    ) -> Float[Tensor, "B T H"]:
        term = term.contiguous()
        if self.kind == "rnn":
            return rnn(term, weight, lengths, initial, reverse=reverse, limit=self.clip)
        return gru(term, weight, lengths, initial, reverse=reverse, candidate=self.candidate)

    def _initialise(self, width: int) -> None:
        """W uniform by its inputs; U orthogonal for GRUs, and for ReLUs small enough that sums over time stay put."""
        if self.recurrent.is_meta:
            return
        bound = self.input.weight.shape[1] ** -0.5
        nn.init.uniform_(self.input.weight, -bound, bound)
        for matrix in (self.recurrent, self.recurrent_back):
            if matrix is None:
                continue
            if self.kind == "rnn":
                nn.init.uniform_(matrix, -(width**-0.5), width**-0.5)
            else:
                for gate in matrix.data.chunk(GATES[self.kind]):
                    nn.init.orthogonal_(gate)
