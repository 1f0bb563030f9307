"""The weights α and β of a language model: the pair with the fewest errors on held-out utterances.

A grid first, then twice a finer one around the best pair. The utterances are heard once and decoded for every pair.
Paper: Deep Speech 2, section 3.8: α and β are tuned on the development set.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from seqloom.core.progress import Progress
from seqloom.metrics.edit_distance import character_error_rate, word_error_rate
from seqloom.systems.deep_speech2.beam_search import BeamConfig
from seqloom.systems.deep_speech2.hear import Heard, decoded
from seqloom.systems.deep_speech2.prior import Prior, Weights

ALPHAS = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0)
BETAS = (-1.0, 0.0, 1.0, 2.0, 4.0)
ROUNDS = 2


class Tried(NamedTuple):
    """What a pair of weights gave."""

    alpha: float
    beta: float
    wer: float
    cer: float


@dataclass(frozen=True)
class Tuned:
    """
    Attributes:
        tried: every pair, the best first.
        without: error rates without a language model.
    """

    weights: Weights
    tried: tuple[Tried, ...]
    without: Tried


def tune(
    heard: Sequence[Heard],
    rules: Prior,
    config: BeamConfig | None = None,
    alphas: Sequence[float] = ALPHAS,
    betas: Sequence[float] = BETAS,
    progress: Progress | None = None,
) -> Tuned:
    """Tune the weights of the language model in `rules`.

    The best has the fewest errors of words (of characters, where the alphabet has no space), then of the other kind,
    then the smallest weights.
    """
    assert rules.model
    found: dict[tuple[float, float], Tried] = {}
    steps = [_step(alphas), _step(betas)]
    grid = [(alpha, beta) for alpha in alphas for beta in betas]
    expected = len(grid) + 8 * ROUNDS

    def rank(one: Tried) -> tuple[float, ...]:
        first, second = (one.wer, one.cer) if " " in rules.symbols else (one.cer, one.wer)
        return (first, second, one.alpha, abs(one.beta), one.beta)

    for finer in range(ROUNDS + 1):
        for pair in grid:
            if pair not in found:
                found[pair] = measure(heard, _weighed(rules, *pair), config)
                if progress:
                    progress("trying weights", min(1.0, len(found) / expected))
        best = min(found.values(), key=rank)
        da, db = (step / 2 ** (finer + 1) for step in steps)
        grid = [
            (round(max(0.0, best.alpha + i * da), 4), round(best.beta + j * db, 4))
            for i in (-1, 0, 1)
            for j in (-1, 0, 1)
        ]
    weights = Weights(alpha=best.alpha, beta=best.beta)
    without = measure(heard, replace(rules, model=None), config)
    return Tuned(weights, tuple(sorted(found.values(), key=rank)), without)


def measure(heard: Sequence[Heard], rules: Prior, config: BeamConfig | None) -> Tried:
    """Error rates of decoding with these rules."""
    said = decoded(heard, rules, config)
    weights = rules.model.weights if rules.model else Weights(alpha=0.0, beta=0.0)
    pair = [one.reference for one in said], [one.hypothesis for one in said]
    return Tried(weights.alpha, weights.beta, word_error_rate(*pair), character_error_rate(*pair))


def table(tuned: Tuned, rows: int = 10) -> str:
    """The best pairs and decoding without a language model, as text."""
    lines = ["alpha    beta     WER      CER"]
    lines += [f"{one.alpha:<8g} {one.beta:<8g} {one.wer:<8.2%} {one.cer:<8.2%}".rstrip() for one in tuned.tried[:rows]]
    lines.append(f"{'no language model':17} {tuned.without.wer:<8.2%} {tuned.without.cer:<8.2%}".rstrip())
    return "\n".join(lines)


def _weighed(rules: Prior, alpha: float, beta: float) -> Prior:
    assert rules.model
    return replace(rules, model=replace(rules.model, weights=Weights(alpha=alpha, beta=beta)))


def _step(values: Sequence[float]) -> float:
    """The usual distance between neighbours of a grid."""
    ordered = sorted(set(values))
    return (ordered[-1] - ordered[0]) / max(1, len(ordered) - 1)
