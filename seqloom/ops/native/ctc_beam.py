"""Prefix beam search over CTC outputs in C++: a search that goes on as frames come, and can be copied.

The rules of language model, lexicon and bonuses come as flat arrays; the search reads them and keeps none of them.
"""

import ctypes
import weakref
from typing import NamedTuple

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from seqloom.ops.native.call import DOUBLE, FLAG, POINTER, SIZE, kernel, pointer

_NEW = (
    POINTER, SIZE, SIZE, DOUBLE, FLAG, FLAG, POINTER, POINTER, POINTER, POINTER, POINTER, POINTER, FLAG, POINTER,
    POINTER, POINTER, POINTER, POINTER, FLAG, FLAG, FLAG, FLAG, POINTER, FLAG, DOUBLE, DOUBLE, DOUBLE,
)  # fmt: skip


class NgramArrays(NamedTuple):
    """A backoff model: nodes are listed n-grams, 0 the empty one.

    Attributes:
        first: node -> where its children begin; one entry more than nodes.
        letter_words: letter -> its number in a model of characters, the space last; None for a model of words.
    """

    first: Int[Tensor, "N+1"]
    word: Int[Tensor, "N"]
    link: Int[Tensor, "N"]
    log_prob: Float[Tensor, "N"]
    backoff: Float[Tensor, "N"]
    begin: int
    end: int
    unknown: int
    letter_words: Int[Tensor, "L+1"] | None
    alpha: float
    beta: float


class BeamArrays(NamedTuple):
    """What the search knows of text.

    Attributes:
        symbols: of the alphabet; the blank is 0.
        space: the symbol between words, -1 if there is none.
        spelling: symbol -> where its letters begin in `letters`.
        first, letter, number, bonus: the lexicon's tree; number is -1 where no word ends.
        strict: whether words outside the lexicon are forbidden.
    """

    symbols: int
    space: int
    spelling: Int[Tensor, "V+1"]
    letters: Int[Tensor, "J"]
    first: Int[Tensor, "W+1"]
    letter: Int[Tensor, "W"]
    number: Int[Tensor, "W"]
    bonus: Float[Tensor, "W"]
    strict: bool
    model: NgramArrays | None


class Living(NamedTuple):
    """The prefixes of the beam, in no order: ln p of all their paths, bonus of the text, whether it may end here."""

    labels: Int[Tensor, "P J"]
    lengths: Int[Tensor, "P"]
    ctc: Float[Tensor, "P"]
    bonus: Float[Tensor, "P"]
    whole: UInt8[Tensor, "P"]


class NativeBeam:
    """A search; `arrays` are kept as long as it lives."""

    def __init__(self, arrays: BeamArrays, beam: int, cutoff_prob: float, cutoff_top_n: int) -> None:
        handle, m = ctypes.c_void_p(), arrays.model
        lm = (m.first, m.word, m.link, m.log_prob, m.backoff) if m else (None,) * 5
        words = m.letter_words if m else None
        kernel("ctc_beam_new", *_NEW)(
            ctypes.byref(handle), beam, cutoff_top_n, cutoff_prob, arrays.symbols, arrays.space,
            *map(pointer, (arrays.spelling, arrays.letters, arrays.first, arrays.letter, arrays.number, arrays.bonus)),
            arrays.strict, *map(pointer, lm), words is None, m.begin if m else 0, m.end if m else 0,
            m.unknown if m else 0, pointer(words), 0 if words is None else len(words) - 1,
            m.alpha if m else 0.0, m.beta if m else 0.0, max(0.0, float(arrays.bonus.max())),
        )  # fmt: skip
        self._own(arrays, handle)

    def _own(self, arrays: BeamArrays, handle: ctypes.c_void_p) -> None:
        self._arrays, self._handle = arrays, handle
        weakref.finalize(self, kernel("ctc_beam_free", POINTER), handle.value)

    def copy(self) -> "NativeBeam":
        """A search that goes on by itself from here."""
        twin, handle = NativeBeam.__new__(NativeBeam), ctypes.c_void_p()
        kernel("ctc_beam_copy", POINTER, POINTER)(self._handle, ctypes.byref(handle))
        twin._own(self._arrays, handle)
        return twin

    def accept(self, log_probs: Float[Tensor, "T V"]) -> None:
        """Go on with further frames, none of whose values is below -1e30."""
        log_probs = log_probs.float().contiguous()
        assert log_probs.is_cpu
        assert log_probs.shape[1] == self._arrays.symbols
        kernel("ctc_beam_accept", POINTER, POINTER, SIZE)(self._handle, pointer(log_probs), len(log_probs))

    def living(self) -> Living:
        """The beam as if no frame followed."""
        count, longest, _ = self._sizes()
        labels, lengths = torch.zeros(count, longest, dtype=torch.int32), torch.zeros(count, dtype=torch.int64)
        ctc, bonus = torch.zeros(2, count, dtype=torch.float64)
        whole = torch.zeros(count, dtype=torch.uint8)
        kernel("ctc_beam_read", POINTER, POINTER, SIZE, POINTER, POINTER, POINTER, POINTER)(
            self._handle, pointer(labels), longest, pointer(lengths), pointer(ctc), pointer(bonus), pointer(whole)
        )
        return Living(labels, lengths, ctc, bonus, whole)

    @property
    def lookups(self) -> int:
        """How many times the language model was asked by the frames so far."""
        return self._sizes()[2]

    def _sizes(self) -> list[int]:
        sizes = torch.zeros(3, dtype=torch.int64)
        kernel("ctc_beam_sizes", POINTER, POINTER)(self._handle, pointer(sizes))
        return sizes.tolist()
