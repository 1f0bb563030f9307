"""One server for all tests that do it no harm."""

import pytest
from serve.http.front import serving, write_tokenizer


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    return write_tokenizer(tmp_path_factory.mktemp("model") / "fake")


@pytest.fixture(scope="session")
def server(folder):
    with serving(folder, places=64, rows=16) as found:
        yield found
