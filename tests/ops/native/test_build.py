"""The library of kernels: built once whoever comes first, found again, never loaded damaged, and done without."""

import contextlib
import os
import platform
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from seqloom.core.errors import ConfigError
from seqloom.ops import kernels
from seqloom.ops.native import build, compiler

SOURCES = {
    "answer.h": "#pragma once\ninline int answer() { return 42; }\n",
    "first.cpp": '#include "answer.h"\nextern "C" int first() { return answer(); }\n',
    "second.cpp": 'extern "C" int second() { return 7; }\n',
}

SCRIPT = """
import os, sys
from pathlib import Path
from seqloom.ops.native import build
build.FOLDER = Path(sys.argv[1])
library = build.library()
print(library.first() if library else build.why_not())
"""


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, a folder of small sources, and a process that has not yet looked for its library."""
    sources = tmp_path / "sources"
    sources.mkdir()
    for name, text in SOURCES.items():
        (sources / name).write_text(text)
    monkeypatch.setattr(build, "FOLDER", sources)
    monkeypatch.setattr(build, "_outcome", None)
    monkeypatch.setenv("SEQLOOM_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("SEQLOOM_ISA", raising=False)
    kernels._preferred.cache_clear()
    return tmp_path / "cache"


@pytest.fixture(autouse=True, scope="module")
def _forget() -> Iterator[None]:
    yield
    kernels._preferred.cache_clear()


@pytest.fixture
def _has_compiler() -> None:
    try:
        compiler.find_compiler()
    except compiler.BuildError as error:
        pytest.skip(str(error))


needs_compiler = pytest.mark.usefixtures("_has_compiler")


def again() -> build.Outcome:
    """What a new process would find."""
    build._outcome = None
    return build.outcome()


def start(tmp_path: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "sources")]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wrapper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: str) -> None:
    """A compiler that does something first."""
    real = compiler.find_compiler().command
    path = tmp_path / "wrapped"
    path.write_text(f'#!/bin/sh\n{before}\nexec {" ".join(real)} "$@"\n')
    path.chmod(0o755)
    monkeypatch.setenv("CXX", str(path))


@needs_compiler
def test_built_once_and_told(cache: Path, capfd: pytest.CaptureFixture[str]) -> None:
    found = build.outcome()
    assert found.library is not None
    assert (found.library.first(), found.library.second()) == (42, 7)
    assert build.why_not() is None
    told = capfd.readouterr()
    assert told.out == ""
    began, ended = told.err.splitlines()
    assert began.startswith(f"seqloom: compiling kernels for this processor with {found.compiler}, once (kept in ")
    assert re.fullmatch(r"seqloom: kernels compiled in \d+ s", ended)
    assert again().path == found.path
    assert capfd.readouterr().err == ""
    assert found.path is not None
    assert found.path.is_relative_to(cache / "native")
    assert {path.stat().st_mode & 0o777 for path in (cache / "native", *(cache / "native").iterdir())} == {0o700}


@needs_compiler
def test_begun_ahead_with_headers_read_once(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = tmp_path / "calls"
    wrapper(tmp_path, monkeypatch, f'echo "$*" >> {calls}')
    (tmp_path / "sources" / build.HEADERS).write_text("#include <cstring>\n")
    monkeypatch.setattr(build, "FEW", 1)
    monkeypatch.setattr(build, "_cores", lambda: 1)
    kernels.begin(torch.device("cpu"))
    library = build.library()  # waits
    assert library is not None
    assert library.second() == 7
    ahead = "__clang__" not in compiler.find_compiler().macros
    made = calls.read_text()
    assert [made.count("c++-header"), made.count(f"-include {cache}")] == [ahead, 2 * ahead]
    assert list(cache.rglob("*.gch")) == []


@needs_compiler
def test_processes_that_start_at_once_build_once(tmp_path: Path) -> None:
    processes = [start(tmp_path) for _ in range(4)]
    results = [process.communicate(timeout=60) for process in processes]
    assert [out for out, _ in results] == ["42\n"] * 4
    assert sorted("compiling" in err for _, err in results) == [False, False, False, True]


@needs_compiler
def test_a_killed_builder_blocks_nobody(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    slow = tmp_path / "slow"
    wrapper(tmp_path, monkeypatch, f'case "$*" in *" -shared "*) touch {slow}.seen; [ -e {slow} ] && sleep 30;; esac')
    slow.touch()
    process = start(tmp_path)
    while not Path(f"{slow}.seen").exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    slow.unlink()
    library = build.library()
    assert library is not None
    assert library.first() == 42
    assert capfd.readouterr().err.count("compiling") == 1
    assert list((cache / "native").rglob("*.seqloom-*")) == []


@needs_compiler
def test_a_builder_that_stands_still_is_not_waited_for_forever(
    cache: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from seqloom.core.checkpoint.lock import hold

    path = build.outcome().path
    assert path is not None
    path.unlink()
    monkeypatch.setattr(build, "PATIENCE_SECONDS", 0)
    with hold(path.parents[1] / "lock"):
        found = again()
    assert found.library is not None
    assert found.library.first() == 42
    assert found.path is None
    assert "for this process only: another process has been building" in capfd.readouterr().err


@needs_compiler
@pytest.mark.parametrize("changed", ["first.cpp", "answer.h"])
def test_what_a_change_does_not_reach_is_not_compiled_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed: str
) -> None:
    before = build.outcome().path
    compiled: list[str] = []
    real = compiler.Compiler.compile

    def watched(self: compiler.Compiler, source: Path, target: Path, header: Path | None) -> None:
        compiled.append(source.name)
        real(self, source, target, header)

    monkeypatch.setattr(compiler.Compiler, "compile", watched)
    path = tmp_path / "sources" / changed
    path.write_text(path.read_text().replace("answer() {", "answer() { return 1;", 1) + "// changed\n")
    after = again()
    assert after.path != before
    assert compiled == ["first.cpp"]
    assert after.library is not None
    assert after.library.first() == (1 if changed == "answer.h" else 42)


@needs_compiler
def test_flags_and_level_are_part_of_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [build.outcome().path]
    command = " ".join(compiler.find_compiler().command)
    monkeypatch.setenv("CXX", f"{command} -DMORE=1")
    paths.append(again().path)
    monkeypatch.setenv("CXX", f"{command} -DMORE=2")
    paths.append(again().path)
    if platform.machine() == "x86_64":
        monkeypatch.setenv("SEQLOOM_ISA", "x86-64")
        paths.append(again().path)
        assert "__AVX__" not in compiler.find_compiler().macros
    assert len(set(paths)) == len(paths)


@needs_compiler
def test_an_unknown_level_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEQLOOM_ISA", "x86-64-v9")
    with pytest.raises(ConfigError, match=r"^SEQLOOM_ISA=x86-64-v9: .* does not know this level: .*x86-64-v9"):
        build.library()


@needs_compiler
@pytest.mark.skipif(platform.machine() != "x86_64", reason="levels of x86")
def test_a_level_that_this_processor_lacks_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    if "__AVX512F__" in compiler.find_compiler().macros:
        pytest.skip("this processor has all of them")
    monkeypatch.setenv("SEQLOOM_ISA", "x86-64-v4")
    with pytest.raises(ConfigError, match=r"^SEQLOOM_ISA=x86-64-v4: this processor has no .*__AVX512F__"):
        build.library()


def test_without_a_compiler_the_torch_forms_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.delenv("SEQLOOM_KERNELS", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setitem(sys.modules, "ziglang", None)
    assert build.library() is None
    assert str(build.why_not()).startswith("no C++ compiler was found (g++, clang++, c++")
    assert set(kernels.table(torch.device("cpu"), torch.float32).values()) == {"torch"}
    assert capfd.readouterr().err == ""


def test_a_compiler_by_name_that_does_not_run_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "/nowhere/c++ -m64")
    assert build.library() is None
    assert build.why_not() == "$CXX, /nowhere/c++ -m64, does not work: error: No such file or directory"


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("echo '#define __GNUC__ 8'", "is too old: GCC 8, while 9 is the least"),
        ("echo '#define __GNUC__ 4'; echo '#define __clang_major__ 11'", "is too old: Clang 11, while 12 is the least"),
        ("while :; do :; done", "does not work: error: not done after 0 s"),
    ],
    ids=["old GCC", "old Clang", "hangs"],
)
def test_a_compiler_that_will_not_do_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, reason: str
) -> None:
    if "while" in script:
        monkeypatch.setattr(compiler, "ANSWER_SECONDS", 0)
    for name in ("g++", "clang++"):
        path = tmp_path / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", f"{tmp_path}:/nowhere")
    monkeypatch.setitem(sys.modules, "ziglang", None)
    assert build.library() is None
    assert build.why_not() == f"g++ {reason}; clang++ {reason}"


@needs_compiler
@pytest.mark.skipif(platform.machine() != "x86_64", reason="levels of x86")
def test_a_level_is_spelled_as_the_compiler_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    translate = """for each; do
shift
case $each in -march=x86-64*) echo "error: unknown CPU: 'x86'" >&2; exit 1;; -march=x86_64*)
each=$(echo "$each" | tr _ -);; esac
set -- "$@" "$each"
done"""
    wrapper(tmp_path, monkeypatch, translate)
    monkeypatch.setenv("SEQLOOM_ISA", "x86-64-v2")
    assert compiler.find_compiler().flags[-1] == "-march=x86_64_v2"


@needs_compiler
def test_what_the_compiler_says_first_is_shown(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "sources" / "first.cpp").write_text('extern "C" int first() {\n  return nothing;\n}\n')
    assert build.library() is None
    reason = build.why_not()
    assert reason is not None
    assert "first.cpp:2:10: error: " in reason
    assert "nothing" in reason
    assert str(tmp_path) not in reason
    told = capfd.readouterr().err
    assert told.count("\n") == 2
    assert told.endswith(f"seqloom: kernels could not be compiled: {reason}; torch forms run instead\n")


@needs_compiler
def test_a_library_that_does_not_load_is_done_without(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "sources" / "first.cpp").write_text(
        'extern "C" int gone();\nextern "C" int first() { return gone(); }\n'
    )
    assert build.library() is None
    assert "gone" in str(build.why_not())


@needs_compiler
def test_a_cache_that_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "temporary").mkdir()
    monkeypatch.setenv("SEQLOOM_CACHE", str(tmp_path / "file" / "cache"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    found = build.outcome()
    assert found.library is not None
    assert found.library.first() == 42
    assert found.path is None
    told = capfd.readouterr().err
    assert told.count("\n") == 2
    assert f"once (for this process only: {tmp_path / 'file' / 'cache'}" in told
    assert list((tmp_path / "temporary").iterdir()) == []


@needs_compiler
def test_no_place_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("SEQLOOM_CACHE", str(tmp_path / "file" / "cache"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "file"))
    assert build.library() is None
    assert "Not a directory" in str(build.why_not())


@needs_compiler
def test_a_full_cache_is_only_read(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = build.outcome().path
    for name in ("mkdir", "rename", "replace", "unlink"):
        monkeypatch.setattr(os, name, lambda *args, **kwargs: pytest.fail("written"))
    assert again().path == path


@needs_compiler
@pytest.mark.parametrize("damage", ["cut", "changed", "no digest"])
def test_a_damaged_library_is_built_again(cache: Path, capfd: pytest.CaptureFixture[str], damage: str) -> None:
    path = build.outcome().path
    assert path is not None
    whole = path.read_bytes()
    if damage == "no digest":
        (path.parent / "sha256").unlink()
    else:  # under a new name, as the old one is loaded
        path.rename(path.with_name("loaded"))
        path.write_bytes(whole[:-100] if damage == "cut" else whole[:-1] + bytes([whole[-1] ^ 1]))
        path.chmod(0o700)
    capfd.readouterr()
    found = again()
    assert found.path == path
    assert found.library is not None
    assert found.library.first() == 42
    assert capfd.readouterr().err.count("compiling") == 1
    assert build._is_whole(path)


@needs_compiler
@pytest.mark.parametrize("level", ["native", "key"])
def test_nothing_is_loaded_from_where_others_can_write(
    cache: Path, capfd: pytest.CaptureFixture[str], level: str
) -> None:
    path = build.outcome().path
    assert path is not None
    folder = cache / "native" if level == "native" else path.parents[1]
    folder.chmod(0o777)
    found = again()
    assert found.library is not None
    assert found.path is None
    assert f"for this process only: others can write to {folder})" in capfd.readouterr().err


@needs_compiler
def test_a_library_that_others_can_write_to_is_built_again(cache: Path) -> None:
    path = build.outcome().path
    assert path is not None
    path.chmod(0o722)
    assert again().path == path
    assert path.stat().st_mode & 0o022 == 0


@needs_compiler
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_child_forked_in_the_middle_of_a_build_makes_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    holding, done = threading.Event(), threading.Event()

    def hold() -> None:
        with build._one_at_a_time:
            holding.set()
            done.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    holding.wait()
    number = os.fork()
    if number == 0:
        with contextlib.suppress(BaseException):
            signal.alarm(20)
            library = build.library()
            os._exit(0 if library is not None and library.first() == 42 else 1)
        os._exit(2)
    done.set()
    thread.join()
    assert os.waitstatus_to_exitcode(os.waitpid(number, 0)[1]) == 0


def test_two_threads_get_one_library(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def load() -> build.Outcome:
        calls.append(1)
        time.sleep(0.05)
        return build.Outcome(reason="none")

    monkeypatch.setattr(build, "_load", load)
    threads = [threading.Thread(target=build.library) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert calls == [1]


@needs_compiler
def test_the_package_ziglang_serves_where_nothing_else_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in that is called as the package is; the package itself is tried where it is installed."""
    packages, real = tmp_path / "packages", compiler.find_compiler().command
    (packages / "ziglang").mkdir(parents=True)
    (packages / "ziglang" / "__init__.py").touch()
    (packages / "ziglang" / "__main__.py").write_text(
        "import os, shutil, subprocess, sys\n"
        f"os.environ['PATH'] = {os.environ['PATH']!r}\n"
        "assert sys.argv[1] == 'c++'\n"
        f"sys.exit(subprocess.call([*{real!r}, *sys.argv[2:]]))\n"
    )
    monkeypatch.syspath_prepend(packages)
    monkeypatch.setenv("PYTHONPATH", str(packages))
    ziglang_serves(monkeypatch, tmp_path)


@pytest.mark.timeout(600)  # it compiles its C++ library where it has never been used
def test_the_real_package_ziglang(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ziglang")
    ziglang_serves(monkeypatch, tmp_path)


def ziglang_serves(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    found = build.outcome()
    assert found.library is not None, found.reason
    assert found.library.first() == 42
    assert str(found.compiler).startswith("ziglang ")
