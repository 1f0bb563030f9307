"""How long the soak lasts: a taste in `make test`, the whole of it with SEQLOOM_SOAK=1 (`make soak`)."""

import os
from collections.abc import Iterator

import pytest
from soak.workers import Workers

FULL = os.environ.get("SEQLOOM_SOAK") == "1"


@pytest.fixture(scope="session")
def kills() -> int:
    return 200 if FULL else 12


@pytest.fixture(scope="session")
def damages() -> int:
    return 1200 if FULL else 300


@pytest.fixture(scope="session")
def refusals() -> int:
    return 10_000 if FULL else 24


@pytest.fixture(scope="session")
def losses() -> int:
    return 10_000 if FULL else 12


@pytest.fixture(scope="module")
def workers() -> Iterator[Workers]:
    workers = Workers()
    yield workers
    workers.close()
