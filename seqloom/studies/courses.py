"""Courses of training that part from one checkpoint, and how far apart they end: what `branching.py` makes.

    gap = (L_reference - L_course) / L_reference        below zero the course is the worse one

Gaps are formed seed by seed and then averaged (`paired.py`). Beside them stand null branches, which differ from the
reference by chance alone: no gap within twice their spread counts as shown.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from statistics import mean

from seqloom.studies.paired import Difference, difference
from seqloom.train.run import Run

REFERENCE = "reference"
NULLS = ("null 1", "null 2")
LATE = 0.25
"""Share of a branch, its end, over which training losses are averaged."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is to be compared.

    Attributes:
        trunk: the reference over its whole length, its seed aside.
        branch_at: steps that all courses share.
        branches: name -> the run that goes on instead of the trunk; what it may change is what a checkpoint can go on
            with, its number formats above all.
        minutes: begin no course that would end later; None takes what it needs.
    """

    scale: str
    trunk: Run
    branch_at: int
    branches: Mapping[str, Run]
    seeds: int
    minutes: float | None = None


@dataclass(frozen=True, kw_only=True)
class Course:
    """One way of training on after the branch point.

    Attributes:
        losses: of every step since.
        valid: measures of held-out data after the last step, in the course's own formats; empty if it ended before.
        step_seconds: median time of a step.
        shares: means over all steps of what the run logs as a share, by name.
        ended: why it ended before its last step; empty if it did not.
    """

    losses: list[float]
    valid: dict[str, float]
    step_seconds: float
    shares: dict[str, float] = field(default_factory=dict)
    ended: str = ""

    @property
    def late(self) -> float:
        """Mean training loss over the end of the course."""
        return mean(self.losses[-max(1, round(LATE * len(self.losses))) :])


@dataclass(kw_only=True)
class Branched:
    """All courses there are.

    Attributes:
        courses: (name, seed) -> course; the trunk's own end is the REFERENCE.
        machines: where they were trained.
    """

    plan: Plan
    courses: dict[tuple[str, int], Course] = field(default_factory=dict)
    machines: set[str] = field(default_factory=set)

    @property
    def names(self) -> list[str]:
        """Every kind of course but the reference, nulls first."""
        return [*NULLS, *self.plan.branches]

    def gaps(self, name: str, measure: Callable[[Course], float | None]) -> list[float]:
        """(reference - course) / reference by seed: below zero the course is the worse one."""
        found = []
        for seed in range(self.plan.seeds):
            mine, theirs = self.courses.get((name, seed)), self.courses.get((REFERENCE, seed))
            if mine is None or theirs is None or mine.ended or theirs.ended:
                continue
            here, there = measure(mine), measure(theirs)
            if here is not None and there:
                found.append((there - here) / there)
        return found

    def late_gap(self, name: str) -> Difference | None:
        """Of the training loss at the end, over seeds; None of a course that is missing or ended early."""
        return difference(self.gaps(name, lambda course: course.late))

    def valid_gap(self, name: str) -> Difference | None:
        """Of held-out loss after the last step."""
        return difference(self.gaps(name, lambda course: course.valid.get("loss")))

    def null_spread(self, measure: Callable[[Course], float | None] = lambda course: course.late) -> float | None:
        """The largest gap, either way, of courses that differ from the reference by chance alone."""
        found = [abs(gap) for name in NULLS for gap in self.gaps(name, measure)]
        return max(found) if found else None

    def slowdown(self, name: str, seed: int) -> float | None:
        """How many times longer a step takes than the reference's."""
        mine, theirs = self.courses.get((name, seed)), self.courses.get((REFERENCE, seed))
        if mine is None or theirs is None or not theirs.step_seconds:
            return None
        return mine.step_seconds / theirs.step_seconds

    def ended(self) -> list[str]:
        """Courses that did not come to their end, and why."""
        return [f"{name}, seed {seed}: {c.ended}" for (name, seed), c in self.courses.items() if c.ended]
