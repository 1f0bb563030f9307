"""What every test stands on: one thread a worker, checked shapes, and a cache of its own."""

import gc
import os
import signal
from collections.abc import Iterator

import pytest
import torch

import checked_shapes

# Two threads a worker on a busy two-core machine are ten times slower than one; the variable is for child processes.
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"

# A shell's background jobs ignore Ctrl-C, and so would all that tests stop by it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

checked_shapes.install()

# Importing everything makes a million objects that stay: nobody need look through them for garbage, now or later.
gc.disable()

from seqloom.core.cache import cache_folder  # noqa: E402
from seqloom.ops.native.build import library  # noqa: E402


@pytest.fixture(scope="session", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Prepared data goes to a folder of this session, never to the one of the person at the keyboard.

    Compiled kernels alone are shared with that person: they are kept by their content, so nothing can be wrong about
    them, and compiling takes longer than the tests of an op. Workers get them before the first test, one compiling
    while the others wait; processes that tests start find them through the link.
    """
    library()
    shared, folder = cache_folder() / "native", tmp_path_factory.mktemp("cache")
    if shared.is_dir():
        (folder / "native").symlink_to(shared.absolute())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SEQLOOM_CACHE", str(folder))
        yield


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    checked_shapes.begin_test()


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a CUDA device")
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(skip)
