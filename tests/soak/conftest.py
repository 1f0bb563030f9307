"""What the tests of trainings that die share: how often, and who starts them."""

from collections.abc import Iterator

import pytest

from soak import soak
from soak.workers import Workers


@pytest.fixture(scope="session")
def kills() -> int:
    return soak(12, 200)


@pytest.fixture(scope="session")
def damages() -> int:
    return soak(300, 1200)


@pytest.fixture(scope="session")
def refusals() -> int:
    return soak(24, 10_000)


@pytest.fixture(scope="session")
def losses() -> int:
    return soak(12, 10_000)


@pytest.fixture(scope="module")
def workers() -> Iterator[Workers]:
    workers = Workers()
    yield workers
    workers.close()
