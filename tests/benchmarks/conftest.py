"""Ceilings measured in no time; what they are worth here does not matter."""

import pytest

from benchmarks import ceiling


@pytest.fixture(autouse=True)
def _low_ceilings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ceiling, "READ_BYTES", 1 << 20)
    monkeypatch.setattr(ceiling, "WIDTHS", (64,))
