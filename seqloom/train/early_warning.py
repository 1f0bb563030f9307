"""What in the measures of a run should make a person look, long before the loss shows it.

    growth    an output norm or attention logit more than twice its running median
    routing   an expert that gets several times the mean load, measurement after measurement
    silence   a layer whose gradient stays exactly zero

A message says each thing once; growth is told again when the value has doubled once more. The beginning of a run, in
which everything grows, is only remembered. Nothing is changed by a warning.
Paper: "Methods of improving LLM training stability", arXiv 2410.16682: in diverging runs the output norms are more
than twice those of converging ones while the losses are still alike.
"""

from collections import Counter, defaultdict, deque
from collections.abc import Callable, Mapping
from statistics import median

GROWTH = 2.0
BEGINNING, FIRST_STEPS = 30, 200  # measurements, and steps, before growth is judged
WINDOW = 20  # measurements whose median a value is held against
MAX_VIO, UNEVEN = 4.0, 10  # this many times the mean load, in this many measurements in a row
SILENT = 3  # measurements in a row with a gradient of exactly zero


class EarlyWarning:
    """Remembers the measures of a run and reports what stands out."""

    def __init__(self, report: Callable[[str], None]) -> None:
        self._report = report
        self._past: dict[str, deque[float]] = defaultdict(lambda: deque(maxlen=BEGINNING))
        self._told: dict[str, float] = {}  # values that growth was reported at
        self._in_a_row: Counter[str] = Counter()

    def look(self, measures: Mapping[str, float]) -> None:
        """Judge one measurement, named as `monitors` does."""
        said: list[str] = []
        grown: dict[str, float] = {}  # name -> times its median
        for name, value in measures.items():
            quantity = name.rpartition(".")[2]
            if quantity in ("output_norm", "logit_max"):
                times = self._growth(name, value)
                grew = times > GROWTH and measures["step"] > FIRST_STEPS
                if grew and value > GROWTH * self._told.get(name, 0.0):
                    grown[name], self._told[name] = times, value
            elif quantity == "max_vio" and self._lasts(name, value > MAX_VIO, UNEVEN):
                said.append(
                    f"{name} was above {MAX_VIO:g} {UNEVEN} times in a row, now {value:.3g}; few experts do the work"
                )
            elif quantity == "gradient_norm" and self._lasts(name, value == 0, SILENT):
                said.append(f"{name} was exactly zero {SILENT} times in a row; this layer does not learn")
        if grown:
            name = max(grown, key=lambda name: grown[name])
            others = f", and of {len(grown)} layers the fastest" if len(grown) > 1 else ""
            said.append(
                f"{name} is {grown[name]:.1f} times its running median, at {measures[name]:.3g}{others}; "
                "diverging runs begin like this"
            )
        for text in said:
            self._report(f"step {measures['step']}: {text}")

    def _growth(self, name: str, value: float) -> float:
        """A value over the median of those before it; 0 while there are too few."""
        past = self._past[name]
        before = median([*past][-WINDOW:]) if len(past) == BEGINNING else 0.0
        past.append(value)
        return value / before if before > 0 else 0.0

    def _lasts(self, name: str, holds: bool, measurements: int) -> bool:
        """Whether something has just held for so many measurements in a row."""
        self._in_a_row[name] = self._in_a_row[name] + 1 if holds else 0
        return self._in_a_row[name] == measurements
