"""What a run measures, one JSON object per line, in the order of its steps.

A process that dies leaves at most one torn line at the end; readers pass over it and a resumed writer removes it. On
resume the lines beyond the resumed step are cut off, so that the stream reads as if nothing had happened.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from seqloom.core.checkpoint import commit
from seqloom.core.errors import CheckpointError


class MetricsLog:
    """Writes metrics.jsonl; the file is made with the first line."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, record: Mapping[str, str | int | float | None]) -> None:
        """Add one line, which must name its "step"; a number that is not finite becomes null, as JSON has no other.

        Raises:
            CheckpointError: the file cannot be written.
        """
        assert "step" in record, f"a record without a step: {record}"
        line = json.dumps({name: _json_number(value) for name, value in record.items()}, allow_nan=False)
        try:
            commit.append(self.path, f"{line}\n".encode())
        except OSError as error:
            raise CheckpointError(f"{self.path}: cannot be written: {error.strerror}") from error

    def truncate(self, step: int) -> None:
        """Cut off everything logged after a step, and a torn last line; -1 empties the log.

        Raises:
            CheckpointError: the file cannot be read or written.
        """
        if not self.path.exists():
            return
        try:
            data = self.path.read_bytes()
            kept = 0
            for line in data.splitlines(keepends=True):
                record = _record(line)
                if not line.endswith(b"\n") or (record is not None and record["step"] > step):
                    break
                kept += len(line)
            commit.write_file(self.path, data[:kept])
        except OSError as error:
            raise CheckpointError(f"{self.path}: cannot be continued: {error.strerror}") from error

    def holds(self, kind: str, step: int) -> bool:
        """Whether there is a line of this "kind" for a step.

        Raises:
            CheckpointError: the file cannot be read.
        """
        try:
            lines = self.path.read_bytes().splitlines() if self.path.exists() else []
        except OSError as error:
            raise CheckpointError(f"{self.path}: cannot be read: {error.strerror}") from error
        records = (_record(line) for line in reversed(lines))
        return any(record is not None and (record["step"], record.get("kind")) == (step, kind) for record in records)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All lines of a metrics.jsonl; a torn last line is passed over.

    Raises:
        CheckpointError: the file cannot be read, or another line is damaged; it is named by its number.
    """
    try:
        lines = path.read_bytes().splitlines(keepends=True)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
    if lines and not lines[-1].endswith(b"\n"):
        del lines[-1]
    records = []
    for number, line in enumerate(lines, start=1):
        if (record := _record(line)) is None:
            raise CheckpointError(f"{path}: line {number} is damaged: {line[:80]!r}")
        records.append(record)
    return records


def _record(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) and isinstance(record.get("step"), int) else None


def _json_number(value: str | int | float | None) -> str | int | float | None:
    return None if isinstance(value, float) and not math.isfinite(value) else value
