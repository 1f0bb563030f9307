"""The decoder: prefix beam search from log-probabilities to the n best texts.

    Q(y) = ln p_ctc(y | x) + α ln p_lm(y) + β wc(y) + bonuses

`Decoder.accept` takes frames in pieces of any length, `result` gives the best texts as if no frame followed, `snapshot`
and `restore` go back. How frames are cut never changes an answer. The C++ form runs where it can be built, else
`beam_reference`, which finds the same. Prefixes that read the same (bigrams cut differently, more than one space) are
one text, and their probabilities are added.
Paper: Deep Speech 2, section 3.8 (beam 500 in English, 200 in Mandarin; in serving the most probable symbols up to a
probability of 0.99, at most 40).
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated

import torch
from jaxtyping import Float
from torch import Tensor

from seqloom.core.config import Ge, Gt, Interval, Le, config
from seqloom.core.errors import DataError
from seqloom.ops import kernels
from seqloom.systems.deep_speech2.beam_reference import BeamReference, Found
from seqloom.systems.deep_speech2.prior import Prior

WIDEST_BEAM = 4096
_LEAST = -1e30  # no symbol is quite impossible, so a beam never runs empty


@config
class BeamConfig:
    """How thoroughly to search.

    Attributes:
        beam: prefixes kept after every frame.
        cutoff_prob: of a frame's symbols, the most probable ones that together reach this are considered.
        cutoff_top_n: at most so many of them.
    """

    beam: Annotated[int, Interval(ge=1, le=WIDEST_BEAM)] = 128
    cutoff_prob: Annotated[float, Gt(0), Le(1)] = 0.999
    cutoff_top_n: Annotated[int, Ge(1)] = 40


@dataclass(frozen=True)
class Hypothesis:
    """A text that was perhaps said.

    Attributes:
        labels: its most probable spelling in symbols of the alphabet.
        score: Q.
        ctc: ln of its probability by sound alone.
        confidence: its share of the probability, e^Q, of all texts left in the beam.
    """

    text: str
    labels: tuple[int, ...]
    score: float
    ctc: float
    confidence: float


class Decoder:
    """A beam search that goes on as frames come.

    Args:
        prior: what is known of text (`prior.prior`), which also holds the alphabet.
    """

    def __init__(self, prior: Prior, config: BeamConfig | None = None) -> None:
        self._prior, self._config = prior, config or BeamConfig()
        self._unused = [label for label, symbol in enumerate(prior.symbols) if label and not symbol]
        self.reset()

    def reset(self) -> None:
        """Begin a new utterance."""
        settings = (self._config.beam, self._config.cutoff_prob, self._config.cutoff_top_n)
        self._search = _Native(self._prior, *settings) if _is_native() else BeamReference(self._prior, *settings)

    def accept(self, log_probs: Float[Tensor, "T V"]) -> None:
        """Go on with further frames.

        Args:
            log_probs: natural logarithms of the symbols' probabilities, on any device.
        Raises:
            DataError: one is not a number.
        """
        symbols = len(self._prior.symbols)
        assert log_probs.shape[1] == symbols, f"{log_probs.shape[1]} symbols for an alphabet of {symbols}"
        log_probs = log_probs.detach().cpu().float()
        if log_probs.isnan().any():
            raise DataError("the log-probabilities to decode are not all numbers")
        log_probs = log_probs.clamp(min=_LEAST)
        log_probs[:, self._unused] = _LEAST
        self._search.accept(log_probs)

    def result(self, best: int = 1) -> list[Hypothesis]:
        """The best texts, at most so many, as if no frame followed.

        A text that ends inside a word of no lexicon that forbids others is given only if there is no other.
        """
        found = self._search.found()
        return _ranked(self._prior.symbols, [each for each in found if each.whole] or found)[:best]

    def snapshot(self) -> "BeamReference | _Native":
        """A mark of this place, for `restore`; good for any number of times."""
        return self._search.copy()

    def restore(self, mark: "BeamReference | _Native") -> None:
        """Go back to where `snapshot` was called."""
        self._search = mark.copy()

    @property
    def lookups(self) -> int | None:
        """How many times the frames asked the language model; None where the reference runs."""
        return self._search.lookups if isinstance(self._search, _Native) else None


def decode(
    log_probs: Float[Tensor, "T V"], prior: Prior, config: BeamConfig | None = None, best: int = 1
) -> list[Hypothesis]:
    """The best texts of a whole utterance; arguments as in `Decoder`."""
    decoder = Decoder(prior, config)
    decoder.accept(log_probs)
    return decoder.result(best)


def _is_native() -> bool:
    return kernels.chosen("ctc_beam", torch.device("cpu"), torch.float32) == "native"


def _ranked(symbols: tuple[str, ...], found: Iterable[Found]) -> list[Hypothesis]:
    texts: dict[str, list[Found]] = {}
    for each in found:
        text = " ".join("".join(symbols[label] for label in each.labels).split())
        texts.setdefault(text, []).append(each)
    scored = []
    for text, same in texts.items():
        likeliest = max(same, key=lambda each: (each.ctc + each.bonus, each.labels))
        score = _log_sum([each.ctc + each.bonus for each in same])
        scored.append((text, likeliest.labels, score, _log_sum([each.ctc for each in same])))
    scored.sort(key=lambda each: (-each[2], each[0]))
    total = _log_sum([each[2] for each in scored])
    return [Hypothesis(*each, math.exp(each[2] - total)) for each in scored]


def _log_sum(values: list[float]) -> float:
    high = max(values)
    return high + math.log(sum(math.exp(value - high) for value in values))


class _Native:
    """The C++ form with the surface of `BeamReference`."""

    def __init__(self, prior: Prior, beam: int, cutoff_prob: float, cutoff_top_n: int) -> None:
        from seqloom.ops.native.ctc_beam import NativeBeam

        self._search = NativeBeam(prior.arrays, beam, cutoff_prob, cutoff_top_n)

    @property
    def lookups(self) -> int:
        return self._search.lookups

    def accept(self, log_probs: Float[Tensor, "T V"]) -> None:
        self._search.accept(log_probs)

    def found(self) -> list[Found]:
        labels, *rest = self._search.living()
        return [
            Found(tuple(row[:length]), ctc, bonus, bool(whole))
            for row, length, ctc, bonus, whole in zip(labels.tolist(), *(part.tolist() for part in rest), strict=True)
        ]

    def copy(self) -> "_Native":
        twin = _Native.__new__(_Native)
        twin._search = self._search.copy()
        return twin
