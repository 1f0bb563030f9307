"""Output norms as an early warning: in diverging runs those of QKV, Proj and FC2 grow before the loss does.

Paper: "Methods of improving LLM training stability" (arXiv 2410.16682).
"""

import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import mean

from seqloom.studies.stability_sweep import Cell, Sweep, rise
from seqloom.studies.trial import Trial

LINEARS = {"QKV": ("q_proj", "k_proj", "v_proj"), "Proj": ("o_proj",), "FC1": ("up_proj",), "FC2": ("down_proj",)}
"""The paper's names of the linear layers, and ours."""

PREFIX = "output_norm."
"""What the names of a trial's measures begin with; the name of the linear layer follows, such as q_proj."""

WATCHED = ("QKV", "Proj", "FC2")  # whose outputs grow in diverging runs


@dataclass(frozen=True)
class Growth:
    """Output norms of a plain run at a large rate, held against those of one at a normal rate.

    Attributes:
        ratios: step -> layer kind -> how many times larger.
        rose: the step at which the loss was above its minimum by the limit, or left the finite numbers.
    """

    calm: Cell
    wild: Cell
    ratios: dict[int, dict[str, float]]
    rose: int | None

    @property
    def warned(self) -> int | None:
        """The first step at which the outputs of all watched layers were more than twice as large."""
        return next((step for step, kinds in self.ratios.items() if min(kinds[kind] for kind in WATCHED) > 2), None)


def growth(sweep: Sweep) -> Growth | None:
    """The smallest rate at which the plain model diverged by itself, else the largest one; None without two rates."""
    plain = sorted((cell for cell in sweep.cells if cell.method == "base"), key=lambda cell: (cell.rate, cell.seed))
    calm = next((cell for cell in plain if cell.rate == sweep.normal), None)
    larger = [cell for cell in plain if cell.rate > sweep.normal]
    if calm is None or not larger:
        return None
    wild = next((cell for cell in larger if cell.divergence), larger[-1])
    there, here = norms_by_step(calm.trial), norms_by_step(wild.trial)
    ratios = {step: {k: here[step][k] / there[step][k] for k in LINEARS} for step in here if step in there}
    losses = wild.trial.losses
    rose = next((n for n in range(1, len(losses) + 1) if rise(losses[:n], wild.steps)), None)
    return Growth(calm, wild, ratios, len(losses) + 1 if rose is None and not wild.trial.finite else rose)


def norms_by_step(trial: Trial) -> dict[int, dict[str, float]]:
    """Output norms by the paper's layer kinds; projections that it has in one matrix are taken together."""
    return {
        int(one["step"]): {
            kind: math.hypot(*(one[f"{PREFIX}{name}"] for name in names)) for kind, names in LINEARS.items()
        }
        for one in trial.watched
        if all(f"{PREFIX}{name}" in one for names in LINEARS.values() for name in names)
    }


def by_layer_kind(measures: Mapping[str, float]) -> dict[str, float]:
    """The output norms of all linear layers that a run's monitor measured, as the mean over layers of a name."""
    found: dict[str, list[float]] = defaultdict(list)
    for name, value in measures.items():
        layer, _, measure = name.rpartition(".")
        if measure == "output_norm" and ".mixer." in layer and value:
            found[PREFIX + layer.rpartition(".")[2]].append(value)
    return {name: mean(values) for name, values in found.items()}
