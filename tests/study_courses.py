"""For the studies that branch: a run of seconds, and courses of training that are given instead of made."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from seqloom.data.config import SourceConfig
from seqloom.numerics.precision import PrecisionConfig
from seqloom.studies.courses import NULLS, REFERENCE, Branched, Course
from seqloom.studies.precision_looks import Look, Looks
from seqloom.studies.precision_scales import SCALES, PrecisionOptions, Scale, plan
from seqloom.systems.hybrid_lm.config import Run
from seqloom.train.observer import Observer
from study_trials import NARROW


class Quiet(Observer):
    def on_message(self, text: str) -> None:
        pass


def narrow(texts: Path, precision: PrecisionConfig | None = None) -> Run:
    """The trunk of the laptop scale with some thousand parameters, eight steps and the texts of a folder."""
    run = SCALES["laptop"].run
    data = replace(run.task.data, sources=(SourceConfig(path=str(texts)),), valid_fraction=0.2)
    return replace(
        run,
        model=NARROW,
        task=replace(run.task, data=data, sequence_length=32, batch_rows=4, micro_rows=None, evaluate_rows=4),
        train=replace(run.train, steps=8, device="cpu", threads=1),
        precision=precision or run.precision,
    )


def narrow_scale(texts: Path) -> Scale:
    return Scale(run=narrow(texts), branch_at=0.75)


def course(loss: float, *, valid: float | None = None, ended: str = "", **shares: float) -> Course:
    """A course whose loss is the same at every step."""
    return Course(
        losses=[loss] * 4,
        valid={} if ended else {"loss": loss if valid is None else valid},
        step_seconds=0.5,
        shares=shares,
        ended=ended,
    )


def branched(recipes: Mapping[str, PrecisionConfig], courses: Mapping[str, Course | list[Course]]) -> Branched:
    """Courses by name and seed beside a reference of loss 2, with null branches that part by 0.01 %."""
    listed = {name: each if isinstance(each, list) else [each] for name, each in courses.items()}
    seeds = max(map(len, listed.values()), default=1)
    listed |= {REFERENCE: [course(2.0)] * seeds, NULLS[0]: [course(2.0002)] * seeds, NULLS[1]: [course(1.9999)] * seeds}
    found = Branched(plan=plan(PrecisionOptions(seeds=seeds), recipes), machines={"a machine"})
    found.courses = {(name, seed): one for name, each in listed.items() for seed, one in enumerate(each)}
    return found


def looks(recipes: Mapping[str, PrecisionConfig]) -> Looks:
    """Every recipe a hundredth worse than the reference."""
    reference = {REFERENCE: Look(loss=2.0, gradient_error=0.0, gradient_cosine=1.0)}
    return Looks([reference | {name: Look(loss=2.02, gradient_error=0.3, gradient_cosine=0.95) for name in recipes}])


def verdicts(found: object) -> dict[str, str]:
    return {claim.name: claim.verdict for claim in found.claims}  # type: ignore[attr-defined]
