"""A training that is killed again and again ends as if nothing had happened."""

import random
import shutil
from pathlib import Path
from typing import Any

import pytest
from train.test_loop import result

from seqloom.core.checkpoint.run_folder import RunFolder
from seqloom.train.loop import train
from soak.workers import Order, Workers, dying


@pytest.fixture(scope="module", params=[False, True], ids=["at_once", "in_background"])
def background(request: pytest.FixtureRequest) -> bool:
    return request.param


@pytest.fixture(scope="module")
def undisturbed(background: bool, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], list[str]]:
    """What a run leaves that nobody disturbs, and its effects on the disk inside saves and recoveries."""
    folder = tmp_path_factory.mktemp("undisturbed")
    order = Order(str(folder), background=background)
    with dying(order) as effects:
        train(order.run, folder)
    return result(folder), effects


@pytest.mark.timeout(1800)
def test_killed_at_any_instant_it_is_the_same_run(
    kills: int, background: bool, workers: Workers, undisturbed: tuple[dict[str, Any], list[str]], tmp_path: Path
) -> None:
    """Half of the kills fall inside a save or a recovery, the others anywhere in the process's life."""
    wanted, effects = undisturbed
    draw = random.Random(0)
    folder = tmp_path / "run"
    suffered = {"inside": 0, "anywhere": 0}
    deaths = 0
    while min(suffered.values()) < kills / 2:
        inside = suffered["inside"] < kills / 2 and draw.random() < 0.6
        if inside:
            # A resumed run has fewer effects left, so an order may come too late and the run ends; then it begins anew.
            code = workers.train(Order(str(folder), draw.randrange(len(effects)), draw.random() < 0.5, background))
        else:
            code = workers.train(Order(str(folder), background=background), kill_after=draw.uniform(0.0, 0.25))
        assert code in (0, -9)
        if code == 0:
            assert result(folder) == wanted, f"after {deaths} deaths"
            shutil.rmtree(folder)
            deaths = 0
        else:
            deaths += 1
            suffered["inside" if inside else "anywhere"] += 1
    assert workers.train(Order(str(folder), background=background)) == 0
    assert result(folder) == wanted


@pytest.mark.timeout(600)
def test_killed_at_each_effect_of_a_save_the_step_before_it_is_whole(
    background: bool, workers: Workers, undisturbed: tuple[dict[str, Any], list[str]], tmp_path: Path
) -> None:
    """Every instant between two effects of the run's second save, one process for each."""
    wanted, effects = undisturbed
    draw = random.Random(1)
    first = len(effects) // 3
    for place in draw.sample(range(first, 2 * first), 6):
        folder = tmp_path / str(place)
        assert workers.train(Order(str(folder), place, background=background)) == -9
        found = RunFolder(folder).open_latest(_refuse)
        assert found is not None
        assert found[0] in (5, 10)
        assert workers.train(Order(str(folder), background=background)) == 0
        assert result(folder) == wanted


def _refuse(line: str) -> None:
    raise AssertionError(f"unexpected damage: {line}")
