"""The tests of the Triton kernels in processes of their own: under Triton's interpreter, and compiled for a GPU that
need not be here."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

FOLDER = Path(__file__).parent / "triton"

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed"),
    pytest.mark.full,
    pytest.mark.timeout(600),
]


@pytest.mark.skipif(torch.cuda.is_available(), reason="they run on the GPU itself")
def test_under_the_interpreter(tmp_path):
    run([sys.executable, "-m", "pytest", "-p", "no:cacheprovider", FOLDER], tmp_path, TRITON_INTERPRET="1")


def test_they_compile_for_a_gpu(tmp_path):
    """The interpreter accepts what the compiler does not."""
    run([sys.executable, FOLDER / "compiling.py"], tmp_path)


def run(command: list[object], cache: Path, **environment: str) -> None:
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("TRITON_", "PYTEST_"))}
    done = subprocess.run(
        [str(word) for word in command],
        cwd=FOLDER.parents[2],
        env={**plain, "TRITON_CACHE_DIR": str(cache), **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
