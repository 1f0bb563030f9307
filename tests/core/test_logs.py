"""The log survives death in the middle of a line and reads after a resume as if nothing had happened."""

import json
from pathlib import Path

import pytest

from seqloom.core.errors import CheckpointError
from seqloom.core.logs import MetricsLog, read_metrics


@pytest.fixture
def log(tmp_path: Path) -> MetricsLog:
    return MetricsLog(tmp_path / "metrics.jsonl")


def test_what_was_logged_is_read(log: MetricsLog) -> None:
    records = [{"step": step, "loss": 1 / (step + 3), "phase": "train"} for step in range(3)]
    for record in records:
        log.append(record)
    assert read_metrics(log.path) == records


def test_a_number_that_is_not_finite_becomes_null(log: MetricsLog) -> None:
    log.append({"step": 1, "a": float("nan"), "b": float("inf"), "c": float("-inf"), "d": 2.0})

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    line = json.loads(log.path.read_text(), parse_constant=refuse)
    assert line == {"step": 1, "a": None, "b": None, "c": None, "d": 2.0}


def test_a_resume_leaves_no_step_twice(log: MetricsLog) -> None:
    for step in (1, 2, 2, 3, 4):
        log.append({"step": step})
    log.truncate(2)
    log.append({"step": 3})
    assert [record["step"] for record in read_metrics(log.path)] == [1, 2, 2, 3]
    log.truncate(-1)
    assert read_metrics(log.path) == []


@pytest.mark.parametrize("cut", range(1, 13))
def test_a_torn_last_line_is_passed_over_and_then_removed(cut: int, log: MetricsLog) -> None:
    log.append({"step": 1})
    log.append({"step": 2})
    whole = log.path.read_bytes()
    log.path.write_bytes(whole[:-cut])
    assert [record["step"] for record in read_metrics(log.path)] == [1]
    log.truncate(9)
    log.append({"step": 2})
    assert log.path.read_bytes() == whole


def test_zeros_after_a_power_loss_are_a_torn_line(log: MetricsLog) -> None:
    log.append({"step": 1})
    log.path.write_bytes(log.path.read_bytes() + bytes(100))
    assert len(read_metrics(log.path)) == 1
    log.truncate(1)
    log.append({"step": 2})
    assert len(read_metrics(log.path)) == 2


def test_damage_inside_is_named_and_does_not_stop_a_resume(log: MetricsLog) -> None:
    log.path.write_bytes(b'{"step": 1}\n{"step: 2}\n{"step": 3}\n{"step": 4}\n')
    with pytest.raises(CheckpointError, match="line 2 is damaged"):
        read_metrics(log.path)
    log.truncate(3)
    assert log.path.read_bytes() == b'{"step": 1}\n{"step: 2}\n{"step": 3}\n'


def test_nothing_logged_yet_is_nothing_to_cut(log: MetricsLog) -> None:
    log.truncate(5)
    assert not log.path.exists()
    with pytest.raises(CheckpointError, match="cannot be read: No such file"):
        read_metrics(log.path)


def test_a_log_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot be written: No such file"):
        MetricsLog(tmp_path / "nowhere" / "metrics.jsonl").append({"step": 1})
    full = MetricsLog(Path("/dev/full"))
    with pytest.raises(CheckpointError, match="No space left"):
        full.append({"step": 1})
