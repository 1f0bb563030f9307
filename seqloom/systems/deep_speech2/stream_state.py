"""What a stream remembers between two pieces of sound, layer by layer.

Everything that looks at several steps at once is a window that slides: of 320 samples for a frame, of k frames for a
convolution, of τ + 1 steps for the row convolution. It keeps the inputs that its next place needs, and no others:

    inputs = kept ‖ new        n = ⌊(S - size) / stride⌋ + 1        kept' = inputs from n · stride on

A recurrent layer keeps its state, the adaptive normalisation its sums, and all follow `nn.state.LayerState`, so streams
of different progress are joined for one forward pass and taken apart again. Deep Speech 2, section 7.
"""

from collections.abc import Sequence
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from seqloom.nn.state import LayerState

T = TypeVar("T", bound=tuple[Any, ...])


class Window(NamedTuple):
    """Inputs that the next place of a sliding window needs.

    Attributes:
        skip: inputs still to come that no place needs, where the stride is longer than the window.
    """

    inputs: Float[Tensor, "S *D"]
    skip: int = 0


def slide(
    window: Window, new: Float[Tensor, "T *D"], size: int, stride: int, zeros_after: int = 0
) -> tuple[Float[Tensor, "S *D"], int, Window]:
    """Move on over new inputs.

    Args:
        zeros_after: that follow them, at the end of a stream.
    Returns:
        the inputs from the next place on, how many places lie in them, and what is kept.
    """
    skipped = min(window.skip, len(new))
    inputs = torch.cat([window.inputs, new[skipped:], new.new_zeros(zeros_after, *new.shape[1:])])
    count = max(0, (len(inputs) - size) // stride + 1)
    moved = count * stride
    rest = window.skip - skipped + max(0, moved - len(inputs))
    return inputs, count, Window(inputs[moved:].clone(), rest)


class PerStream(Generic[T]):
    """A value of its own for every stream, never changed but replaced."""

    def __init__(self, values: Sequence[T]) -> None:
        self.values = list(values)

    def snapshot(self) -> tuple[T, ...]:
        return tuple(self.values)

    def restore(self, mark: tuple[T, ...]) -> None:
        self.values = list(mark)

    def select(self, rows: Int[Tensor, "R"]) -> None:
        self.values = [self.values[row] for row in rows.tolist()]

    def join(self, others: "list[PerStream[T]]") -> None:
        self.values = [value for state in (self, *others) for value in state.values]

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for value in self.values for part in value if isinstance(part, Tensor))


class Hidden:
    """The state of a recurrent layer; replaced, never written in place."""

    def __init__(self, values: Float[Tensor, "B H"]) -> None:
        self.values = values

    def snapshot(self) -> Tensor:
        return self.values

    def restore(self, mark: Tensor) -> None:
        self.values = mark

    def select(self, rows: Int[Tensor, "R"]) -> None:
        self.values = self.values[rows.to(self.values.device)]

    def join(self, others: "list[Hidden]") -> None:
        self.values = torch.cat([self.values, *(other.values for other in others)])

    @property
    def nbytes(self) -> int:
        return self.values.nbytes


class StreamState:
    """The memory of all layers for some streams, itself a `LayerState`."""

    def __init__(self, layers: Sequence[LayerState]) -> None:
        self.layers: list[Any] = list(layers)  # which kind each one is, its layer knows

    def snapshot(self) -> list[Any]:
        return [layer.snapshot() for layer in self.layers]

    def restore(self, mark: list[Any]) -> None:
        for layer, each in zip(self.layers, mark, strict=True):
            layer.restore(each)

    def select(self, rows: Int[Tensor, "R"]) -> None:
        for layer in self.layers:
            layer.select(rows)

    def join(self, others: "list[StreamState]") -> None:
        for place, layer in enumerate(self.layers):
            layer.join([other.layers[place] for other in others])

    @property
    def nbytes(self) -> int:
        return sum(layer.nbytes for layer in self.layers)
