"""A whole training on a disk that refuses a single time, or that loses what was not forced to it.

Every effect on the disk counts: of the lock, the log, the saves, their tidying up, the report. Whatever is refused, the
run says so or does not need it, the step before it is whole, and the same command leads to the undisturbed end.
"""

import contextlib
import errno
import os
import random
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from core.checkpoint.test_power_loss import Disk, _rebuild
from train.test_loop import Diary, result
from train.toy import ToyRun

from seqloom.core.checkpoint.run_folder import RunFolder
from seqloom.core.errors import CheckpointError
from seqloom.train.loop import train
from soak.workers import EFFECTS

REASONS = (errno.EIO, errno.ENOSPC, errno.EACCES)


def saving(background: bool) -> ToyRun:
    run = ToyRun()
    return replace(run, train=replace(run.train, async_save=background))


@pytest.fixture(scope="module", params=[False, True], ids=["at_once", "in_background"])
def run(request: pytest.FixtureRequest) -> ToyRun:
    return saving(request.param)


@pytest.fixture(scope="module")
def undisturbed(run: ToyRun, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], int]:
    """What a run leaves that nobody disturbs, and the number of its effects on the disk."""
    folder = tmp_path_factory.mktemp("undisturbed")
    with refusing(None, 0) as effects:
        train(run, folder, Diary())
    return result(folder), len(effects)


@contextlib.contextmanager
def refusing(number: int | None, reason: int) -> Iterator[list[str]]:
    """The effect of this number fails, once; gives the effects so far. Nothing waits for the disk."""
    effects: list[str] = []

    def faulty(name: str, real: Any) -> Any:
        def effect(*args: Any, **kwargs: Any) -> Any:
            effects.append(name)
            if len(effects) - 1 == number:
                raise OSError(reason, os.strerror(reason))
            return real(*args, **kwargs)

        return effect

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        for name in EFFECTS:
            patch.setattr(os, name, faulty(name, getattr(os, name)))
        yield effects


@pytest.mark.timeout(3600)
def test_each_refused_effect_is_told_and_costs_no_finished_step(
    run: ToyRun, refusals: int, undisturbed: tuple[dict[str, Any], int], tmp_path: Path
) -> None:
    wanted, count = undisturbed
    cases = [(number, reason) for number in range(count) for reason in REASONS]
    told = 0
    cases = random.Random(0).sample(cases, min(refusals, len(cases)))
    for number, reason in cases:
        diary, message = Diary(), ""
        with refusing(number, reason):
            try:
                train(run, tmp_path / "run", diary)
            except CheckpointError as error:
                message = str(error)
        assert not message or os.strerror(reason) in message, number
        told += bool(message)
        last = max(diary.saves, default=0)
        found = RunFolder(tmp_path / "run").open_latest(_refuse)
        assert (found[0] if found else 0) >= last, (number, reason)
        train(run, tmp_path / "run", Diary())
        assert result(tmp_path / "run") == wanted, (number, reason)
        shutil.rmtree(tmp_path / "run")
    assert told > len(cases) / 3


@pytest.mark.timeout(3600)
def test_no_finished_step_is_lost_with_the_power(
    run: ToyRun, losses: int, undisturbed: tuple[dict[str, Any], int], tmp_path: Path
) -> None:
    root, after = tmp_path / "disk", tmp_path / "after"
    root.mkdir()

    class Noting(Diary):
        def on_save(self, step: int, path: Path) -> None:
            disk.note(step)

    with pytest.MonkeyPatch.context() as patch:
        disk = Disk(root, patch)
        train(run, root / "run", Noting())
    disk.close()
    assert disk.saved == run.train.steps
    moments = random.Random(0).sample(disk.moments, min(losses, len(disk.moments)))
    for safe, saved in [*moments, disk.moments[-1]]:
        shutil.rmtree(after, ignore_errors=True)
        _rebuild(safe, disk.root, after)
        found = RunFolder(after / "run").open_latest(_refuse)
        assert (found[0] if found else 0) >= saved
        train(run, after / "run", Diary())
        assert result(after / "run") == undisturbed[0]


def _refuse(line: str) -> None:
    raise AssertionError(f"unexpected damage: {line}")
