"""C++ of the tests, compiled as the kernels are."""

import ctypes
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from seqloom.ops.native.build import FOLDER, library
from seqloom.ops.native.compiler import BuildError, find_compiler

HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def probe(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., ctypes.CDLL]:
    """Compiles files of this folder, and files of the kernels, into a library of their own; takes further flags."""
    try:
        compiler = find_compiler()
    except BuildError as error:
        pytest.skip(str(error))

    def build(*names: str, flags: tuple[str, ...] = ()) -> ctypes.CDLL:
        folder = tmp_path_factory.mktemp("probe")
        used = replace(compiler, flags=(*compiler.flags, f"-I{FOLDER}", *flags))
        objects = []
        for name in names:
            objects.append(folder / f"{name}.o")
            used.compile(HERE / name if (HERE / name).exists() else FOLDER / name, objects[-1])
        used.link(objects, folder / "probe.so")
        return ctypes.CDLL(str(folder / "probe.so"))

    return build


@pytest.fixture
def poisoned_scratch() -> Iterator[None]:
    """The scratch memory of every thread is handed out full of NaN."""
    found = library()
    assert found is not None
    found.seqloom_poison_scratch(1)
    yield
    found.seqloom_poison_scratch(0)
