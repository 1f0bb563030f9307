"""The trainings of a stability sweep, and when one counts as diverged.

    its loss is not finite, or
    the mean of its last 2 % of steps is more than 0.5 nats above its own minimum, or
    its final validation loss is more than 1.1 times that of the best method at the same rate and seed.

The first two a run shows by itself, the third only beside others. Beside this yes and no stands a graded measure, the
sensitivity: the mean over all rates of  min(final loss, first loss) - the method's best.
Paper: "Methods of improving LLM training stability" (arXiv 2410.16682), where divergence is judged by eye; sensitivity
from arXiv 2309.14322.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import mean, median

from seqloom.studies.trial import Trial
from seqloom.systems.hybrid_lm.config import Run

RISE, WORSE = 0.5, 1.1  # nats above a run's own minimum; times the best method's validation loss
JUDGED, FINAL = 0.02, 0.1  # shares of the steps: the last ones that are judged, and those whose mean is the final loss


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One training of the sweep."""

    method: str
    rate: float
    seed: int
    trial: Trial

    @property
    def steps(self) -> int:
        """Steps that the run was to take."""
        return int(self.trial.settings["train"]["steps"])

    @property
    def valid(self) -> float:
        """Validation loss after the last step; infinite if it did not come that far."""
        return self.trial.valid.get("loss", math.inf)

    @property
    def final(self) -> float:
        """Final training loss in nats; infinite if it left the finite numbers."""
        return mean(self.trial.losses[-_steps(FINAL, self.steps) :]) if self.trial.finite else math.inf

    @property
    def graded(self) -> float:
        """Final loss, or the first one if that is lower: a run cannot do worse than not to learn."""
        return min(self.final, self.trial.losses[0]) if self.trial.losses else math.inf

    @property
    def divergence(self) -> str:
        """How the run shows by itself that it diverged; empty if it does not."""
        return self.trial.ended or rise(self.trial.losses, self.steps)

    def __str__(self) -> str:
        outcome = f"diverged: {self.divergence}" if self.divergence else f"loss {self.final:.3f}"
        return f"{self.method} at {self.rate:g}, seed {self.seed}: {outcome}"


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """All trainings of one scale.

    Attributes:
        run: what they share; method, rate and seed are each cell's own.
        cells: those trained so far.
    """

    scale: str
    methods: Sequence[str]
    rates: Sequence[float]
    seeds: int
    run: Run
    normal_rate: float
    quality_margin: float
    cells: list[Cell] = field(default_factory=list)

    def at(self, method: str, rate: float) -> list[Cell]:
        return [cell for cell in self.cells if (cell.method, cell.rate) == (method, rate)]

    def final(self, method: str, rate: float) -> float | None:
        """Mean final training loss over seeds; None where nothing was trained."""
        found = self.at(method, rate)
        return mean(cell.final for cell in found) if found else None

    def divergence(self, cell: Cell) -> str:
        """How a run diverged, by itself or beside the others of its rate and seed; empty if it did not."""
        if cell.divergence:
            return cell.divergence
        if not math.isfinite(cell.valid):
            return "validation loss not finite"
        beside = [other.valid for other in self.cells if (other.rate, other.seed) == (cell.rate, cell.seed)]
        times = cell.valid / min(beside)
        return f"validation loss {times:.2f} times the best method's" if times > WORSE else ""

    def diverged(self, method: str, rate: float) -> bool | None:
        """Whether any seed diverged; None where nothing was trained."""
        found = self.at(method, rate)
        return any(self.divergence(cell) for cell in found) if found else None

    def largest_stable(self, method: str) -> float | None:
        """The last rate before the first that diverged, 0 if that is the smallest; None while a rate is missing."""
        stable = 0.0
        for rate in self.rates:
            diverged = self.diverged(method, rate)
            if diverged is None:
                return None
            if diverged:
                break
            stable = rate
        return stable

    def sensitivity(self, method: str) -> float | None:
        """Mean over rates of the graded loss, above the best of them; None while a rate is missing."""
        losses = self._graded(method)
        return mean(losses) - min(losses) if losses else None

    def excess(self, method: str) -> float | None:
        """Graded loss at the largest rate above the method's best; None while a rate is missing."""
        losses = self._graded(method)
        return losses[-1] - min(losses) if losses else None

    @property
    def normal(self) -> float:
        """The rate of the sweep nearest to a normal one."""
        return min(self.rates, key=lambda rate: abs(math.log(rate / self.normal_rate)))

    def valid(self, method: str) -> float | None:
        """Mean validation loss at the normal rate; None where nothing was trained to its end."""
        found = [cell.valid for cell in self.at(method, self.normal)]
        return mean(found) if found and math.isfinite(sum(found)) else None

    def slowdown(self, method: str) -> float | None:
        """How much longer a step takes than one of the plain model: median over rates and seeds that both have."""
        plain = {(cell.rate, cell.seed): cell.trial.step_seconds for cell in self.cells if cell.method == "base"}
        mine = [cell for cell in self.cells if cell.method == method and plain.get((cell.rate, cell.seed))]
        return median(cell.trial.step_seconds / plain[cell.rate, cell.seed] for cell in mine) if mine else None

    def _graded(self, method: str) -> list[float]:
        """By rate, mean over seeds; empty while a rate is missing."""
        found = [self.at(method, rate) for rate in self.rates]
        return [mean(cell.graded for cell in cells) for cells in found] if all(found) else []


def rise(losses: Sequence[float], steps: int) -> str:
    """Whether the last steps are far above the best one, in words; empty if they are not."""
    above = _above(losses, steps)
    return f"{above:.2f} nats above its own minimum" if above > RISE else ""


def end_of_patience(losses: Sequence[float], steps: int, patience: float) -> str | None:
    """Why a run need not go on: it has stood above its limit for this share of all steps."""
    waited = _steps(patience, steps)
    if patience >= 1 or len(losses) <= waited:
        return None
    if all(_above(losses[: len(losses) - back], steps) > RISE for back in range(waited)):
        return f"above its own minimum by {_above(losses, steps):.2f} nats for {waited} steps, ended at {len(losses)}"
    return None


def _above(losses: Sequence[float], steps: int) -> float:
    """How far the mean of the last steps is above the least loss."""
    return mean(losses[-_steps(JUDGED, steps) :]) - min(losses)


def _steps(share: float, steps: int) -> int:
    return max(1, round(share * steps))
