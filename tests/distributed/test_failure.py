"""One rank fails: all end within seconds, with one reason and a code that tells."""

from pathlib import Path

import pytest
from distributed.conftest import Go

from seqloom.core.logs import read_metrics

SOON = 30
"""Seconds, start and first steps of all processes on a busy machine included."""


@pytest.mark.parametrize("rank", [pytest.param(0, marks=pytest.mark.full), 1])
def test_an_error_on_one_rank_is_told_once_and_ends_all(rank: int, go: Go, tmp_path: Path) -> None:
    ended = go(tmp_path / "run", 2, fault="data", fault_rank=rank, fault_step=2)
    assert ended.codes == [2, 2], ended.errors
    assert ended.errors.count(f"rank {rank}: a row is damaged") == 1
    assert "Traceback" not in ended.errors
    assert ended.seconds < SOON


@pytest.mark.full
def test_a_slip_of_ours_shows_one_traceback(go: Go, tmp_path: Path) -> None:
    ended = go(tmp_path / "run", 4, parallel=(("expert", 2),), fault="bug", fault_rank=2, fault_step=1)
    assert ended.codes == [1] * 4, ended.errors
    assert ended.errors.count("ValueError: a slip") == 1
    assert ended.errors.count("Traceback") == 1
    assert ended.seconds < SOON


@pytest.mark.full
def test_who_loses_a_rank_says_so(go: Go, tmp_path: Path) -> None:
    ended = go(tmp_path / "run", 2, fault="kill", fault_rank=1, fault_step=2)
    assert ended.codes == [1, -9], ended.errors
    assert "rank 0: another rank is gone without a word" in ended.errors
    assert ended.seconds < SOON


@pytest.mark.full
def test_a_value_that_is_not_finite_on_one_rank_is_skipped_by_all(go: Go, tmp_path: Path) -> None:
    def log(folder: Path, ranks: int, rank: int) -> list[float]:
        order = {"fault": "nan", "fault_rank": rank, "fault_step": 1}
        ended = go(folder, ranks, changes=(("on_not_finite", "skip"),), **order)
        assert ended.codes == [0] * ranks, ended.errors
        return [line["loss"] for line in read_metrics(folder / "metrics.jsonl") if line["kind"] in ("train", "valid")]

    assert log(tmp_path / "two", 2, 1) == pytest.approx(log(tmp_path / "one", 1, 0), rel=1e-6)
