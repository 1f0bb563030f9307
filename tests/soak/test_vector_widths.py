"""All kernels once more with the vectors of other processors: 4 floats as in NEON, 8 as in AVX2, 16 as in AVX-512.

The compiler makes wide vectors of narrow ones, so what runs is the code for the other processor, tails and all, in the
instructions of this one. Where that has AVX2, the branches for AVX-512 run too, on a header that has its functions in
halves.
"""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from seqloom.ops.native.compiler import BuildError, find_compiler
from soak import SOAKING

NATIVE = Path(__file__).parent.parent / "ops" / "native"
OF_THE_FOUNDATION = {"test_build", "test_simd", "test_threads"}


@pytest.mark.skipif(not SOAKING, reason="compiles all kernels twice more: run by `make soak`")
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("width", [4, 8, 16])
def test_kernels_hold_with_other_vectors(width: int) -> None:
    try:
        compiler = find_compiler()
    except BuildError as error:
        pytest.skip(str(error))
    own = 16 if "__AVX512F__" in compiler.macros else 8 if "__AVX__" in compiler.macros else 4
    if width == own:
        pytest.skip("the width of this processor, with which all other tests run")
    wide = f"-include {NATIVE / 'avx512_in_halves.h'}"
    forced = wide if (width, own) == (16, 8) else f"-DSEQLOOM_WIDTH={width}"
    tests = sorted(path for path in NATIVE.glob("test_*.py") if path.stem not in OF_THE_FOUNDATION)
    tests.append(NATIVE.parent / "test_paged_attention.py")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-n", "0", "-p", "no:cacheprovider", "-m", "not full", *map(str, tests)],
        env={**os.environ, "CXX": f"{shlex.join(compiler.command)} {forced}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
