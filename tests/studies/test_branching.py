import json
from dataclasses import replace
from pathlib import Path

import pytest

from seqloom.core.errors import CheckpointError, NumericsError
from seqloom.numerics.precision import PrecisionConfig
from seqloom.studies.branching import fork, train_branches
from seqloom.studies.courses import NULLS, REFERENCE, Branched, Course, Plan
from seqloom.studies.precision_scales import SCALES
from seqloom.systems.hybrid_lm.config import Run
from seqloom.train.observer import Observer
from study_courses import Quiet, course, narrow


@pytest.fixture(scope="module")
def branched(texts: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Branched, Path]:
    folder = tmp_path_factory.mktemp("branches")
    run = narrow(texts, PrecisionConfig(activations="fp32"))
    hotter = replace(run, train=replace(run.train, optimizer=replace(run.train.optimizer, lr=0.05)))
    plan = Plan(scale="tiny", trunk=run, branch_at=5, branches={"same": run, "hot": hotter}, seeds=1)
    return train_branches(plan, folder, Quiet()), folder


@pytest.mark.full
def test_a_branch_of_equal_settings_is_the_trunk_itself(branched: tuple[Branched, Path]) -> None:
    found, _ = branched
    assert found.courses["same", 0].losses == found.courses[REFERENCE, 0].losses
    assert found.courses["same", 0].valid == found.courses[REFERENCE, 0].valid
    assert len(found.courses["same", 0].losses) == 3


@pytest.mark.full
def test_moved_weights_move_losses_a_little_and_other_settings_much(branched: tuple[Branched, Path]) -> None:
    found, _ = branched
    first, second = (found.courses[name, 0].losses for name in NULLS)
    assert first != second
    spread = found.null_spread()
    assert spread is not None
    assert 0 < spread < 1e-3
    gap = found.late_gap("hot")
    assert gap is not None
    assert abs(gap.mean) > 2 * spread


@pytest.mark.full
def test_what_is_stored_is_not_trained_again(branched: tuple[Branched, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    found, folder = branched
    monkeypatch.setattr("seqloom.train.loop.train", lambda *_: pytest.fail("trained again"))
    assert train_branches(found.plan, folder, Quiet()).courses == found.courses


@pytest.mark.full
def test_a_course_that_breaks_off_is_told_and_judged_by_nothing(
    branched: tuple[Branched, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from seqloom.train.loop import train

    found, folder = branched

    def breaking(run: Run, into: Path, watch: Observer) -> None:
        train(run, into, watch)
        raise NumericsError("step 7: the loss is not finite; nothing was spoilt")

    monkeypatch.setattr("seqloom.train.loop.train", breaking)
    plan = replace(found.plan, branches={"broken": found.plan.branches["hot"]})
    again = train_branches(plan, folder, Quiet())
    assert again.ended() == ["broken, seed 0: step 7: the loss is not finite"]
    assert again.late_gap("broken") is None


@pytest.mark.full
def test_a_damaged_checkpoint_is_not_branched_from(branched: tuple[Branched, Path], tmp_path: Path) -> None:
    found, folder = branched
    source = tmp_path / "step"
    (trunk,) = (folder / "trunks").iterdir()
    source.mkdir()
    for path in (trunk / "steps" / "00000005").iterdir():
        (source / path.name).write_bytes(path.read_bytes())
    state = json.loads((source / "state.json").read_text(encoding="utf-8"))
    (source / "state.json").write_text(json.dumps(state | {"step": 6}), encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"state\.json"):
        fork(source, 5, found.plan.trunk, tmp_path / "run")


def test_gaps_are_shares_paired_by_seed_and_worse_is_below_zero() -> None:
    plan = Plan(scale="tiny", trunk=SCALES["laptop"].run, branch_at=500, branches={}, seeds=3)
    found = Branched(plan=plan)
    found.courses = {
        (REFERENCE, 0): course(2.0), (REFERENCE, 1): course(4.0), (REFERENCE, 2): course(1.0),
        (NULLS[0], 0): course(2.02, valid=2.2), (NULLS[0], 1): course(3.96, valid=4.2),
        (NULLS[1], 0): course(8.0, ended="why"),
    }  # fmt: skip
    assert found.gaps(NULLS[0], lambda each: each.late) == pytest.approx([-0.01, 0.01])
    gap, valid = found.late_gap(NULLS[0]), found.valid_gap(NULLS[0])
    assert gap is not None
    assert valid is not None
    assert (gap.mean, gap.seeds, valid.mean) == (pytest.approx(0), 2, pytest.approx(-0.075))
    assert found.null_spread() == pytest.approx(0.01)


def test_late_is_the_last_quarter() -> None:
    assert Course(losses=[9.0] * 6 + [1.0, 3.0], valid={}, step_seconds=0.1).late == 2.0
