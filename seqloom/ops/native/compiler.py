"""The C++ compiler of this machine, and how it is called.

$CXX if that is set, else the first that works of g++, clang++, c++ and the `ziglang` package (extra `native`); one that
is too old or gives no answer is passed over. It compiles for the very processor it runs on; SEQLOOM_ISA names another
level, such as x86-64-v3. What the compiler says of itself and of the processor, its predefined macros, goes into the
key of all that it makes.

No flag lets it change the result: sums keep their order, NaN and infinity their meaning, and a product and a sum are
fused only where the source says so.
"""

import importlib.util
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from seqloom.core.errors import ConfigError

LEVEL = "SEQLOOM_ISA"

FLAGS = (
    "-O3", "-std=c++17", "-fPIC", "-pthread", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math",
    "-fno-exceptions", "-fno-rtti", "-fvisibility-inlines-hidden", "-Wno-psabi",
)  # fmt: skip
GCC_FLAGS = ("-fno-gnu-unique", "-fno-semantic-interposition")
"""What Clang does by itself: two libraries in a process share no variables, and calls inside one may be inlined."""

OLDEST = {"__clang_major__": ("Clang", 12), "__GNUC__": ("GCC", 9)}
"""The first that have all vector extensions in use; Clang passes for a GCC 4.2, so it is looked for first."""

ANSWER_SECONDS, TIMEOUT_SECONDS = 60, 900
"""For what a compiler says of itself, and for what it makes."""


class BuildError(Exception):
    """There are no native kernels, and why; never seen outside, where the portable forms run instead."""


@dataclass(frozen=True)
class Compiler:
    """A compiler that has been seen to work.

    Attributes:
        title: how a person knows it, with its version.
        command: how it is started.
        flags: what it is always given.
        macros: its predefined macros under these flags, one a line.
    """

    title: str
    command: tuple[str, ...]
    flags: tuple[str, ...]
    macros: str

    @property
    def identity(self) -> list[str]:
        """All that decides what it makes of a source."""
        return [self.title, *self.flags, self.macros]

    def precompile(self, header: Path, folder: Path) -> Path | None:
        """A copy of a header that `compile` need not read again; None of Clang, and where it fails.

        GCC spends a second on the vector intrinsics alone, for every source.
        """
        if "#define __clang__ " in self.macros:
            return None
        copy = Path(shutil.copy(header, folder))
        done = _run(*self.command, *self.flags, "-x", "c++-header", str(copy), "-o", f"{copy}.gch")
        return None if done.returncode else copy

    def compile(self, source: Path, target: Path, header: Path | None = None) -> None:
        """Make an object file.

        Args:
            header: from `precompile`.
        Raises:
            BuildError: the compiler's first complaint.
        """
        plain = ("-c", str(source))
        try:
            self._make(*(() if header is None else ("-include", str(header))), *plain, target=target)
        except BuildError:
            if header is None:
                raise
            self._make(*plain, target=target)  # what is precompiled does not load at every address

    def link(self, objects: list[Path], target: Path) -> None:
        """Make a shared library of object files.

        Raises:
            BuildError: the linker's first complaint.
        """
        self._make("-shared", *map(str, objects), target=target)

    def _make(self, *arguments: str, target: Path) -> None:
        done = _run(*self.command, *self.flags, *arguments, "-o", str(target))
        if done.returncode:
            raise BuildError(f"{self.title}: {_complaint(done)}")


def find_compiler() -> Compiler:
    """The compiler to use.

    Raises:
        BuildError: there is none.
        ConfigError: SEQLOOM_ISA names a level that the compiler does not know or this processor does not have.
    """
    refusals = []
    for title, command in _candidates():
        try:
            return _compiler(title, command)
        except BuildError as error:
            refusals.append(str(error))
    if refusals:
        raise BuildError("; ".join(refusals))
    raise BuildError("no C++ compiler was found (g++, clang++, c++, or the package of: pip install 'seqloom[native]')")


def _candidates() -> Iterator[tuple[str, tuple[str, ...]]]:
    if chosen := shlex.split(os.environ.get("CXX", "")):
        yield f"$CXX, {shlex.join(chosen)},", tuple(chosen)
        return
    # A Mac without developer tools has stand-ins under these names that open a window.
    if sys.platform != "darwin" or _run("xcode-select", "-p").returncode == 0:
        for name in ("g++", "clang++", "c++"):
            if shutil.which(name):
                yield name, (name,)
    if importlib.util.find_spec("ziglang"):
        yield "ziglang", (sys.executable, "-m", "ziglang", "c++")


def _compiler(title: str, command: tuple[str, ...]) -> Compiler:
    """Ask a compiler for its macros, with which it shows that it works and takes our flags."""
    native = "-march=native" if platform.machine().lower() in ("x86_64", "amd64") else "-mcpu=native"
    macros = _macros(command, (*FLAGS, native))
    tuned = (native,) if macros.returncode == 0 else ()  # an older compiler for ARM: what every ARM has
    if macros.returncode:
        macros = _macros(command, FLAGS)
        if macros.returncode:
            raise BuildError(f"{title} does not work: {_complaint(macros)}")
    _refuse_old(title, macros.stdout)
    if level := os.environ.get(LEVEL, ""):
        tuned = (f"-march={level}",)
        wanted = _macros(command, (*FLAGS, *tuned))
        if wanted.returncode:  # zig spells x86-64-v3 with underscores
            spelled = (f"-march={level.replace('-', '_')}",)
            again = _macros(command, (*FLAGS, *spelled))
            wanted, tuned = (wanted, tuned) if again.returncode else (again, spelled)
        if wanted.returncode:
            raise ConfigError(f"{LEVEL}={level}: {title} does not know this level: {_complaint(wanted)}")
        if missing := sorted(_features(wanted.stdout) - _features(macros.stdout)):
            raise ConfigError(f"{LEVEL}={level}: this processor has no {', '.join(missing)}")
        macros = wanted
    text = macros.stdout
    version = re.search(r'^#define __VERSION__ "(.*)"', text, re.MULTILINE)
    own = () if "#define __clang__ " in text else GCC_FLAGS
    return Compiler(f"{title} {version[1] if version else ''}".strip(), command, (*FLAGS, *own, *tuned), text)


def _refuse_old(title: str, macros: str) -> None:
    """
    Raises:
        BuildError: a compiler with these macros is older than `OLDEST`.
    """
    for macro, (name, oldest) in OLDEST.items():
        if found := re.search(rf"^#define {macro} (\d+)$", macros, re.MULTILINE):
            if int(found[1]) < oldest:
                raise BuildError(f"{title} is too old: {name} {found[1]}, while {oldest} is the least")
            return


def _macros(command: tuple[str, ...], flags: tuple[str, ...]) -> subprocess.CompletedProcess[str]:
    return _run(*command, *flags, "-dM", "-E", "-x", "c++", os.devnull, seconds=ANSWER_SECONDS)


def _features(macros: str) -> set[str]:
    """Parts of the processor that a compiler counts on: macros such as __AVX512F__, not names such as __znver3__."""
    return set(re.findall(r"^#define (__[A-Z0-9_]+) 1$", macros, re.MULTILINE))


def _run(*command: str, seconds: int = TIMEOUT_SECONDS) -> subprocess.CompletedProcess[str]:
    """Run a compiler, speaking English; one that cannot be started fails like one that does not work."""
    try:
        return subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            env={**os.environ, "LC_ALL": "C"},
            timeout=seconds,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        reason = getattr(error, "strerror", None) or f"not done after {seconds} s"
        return subprocess.CompletedProcess(command, 127, "", f"error: {reason}")


def _complaint(done: subprocess.CompletedProcess[str]) -> str:
    """The first line that says what is wrong, without the folder of the source."""
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    errors = [line for line in lines if "error" in line.lower()]
    for line in errors or lines:
        return re.sub(r"^\S*/(?=[^/\s]+:\d+:)", "", line)
    return f"exit code {done.returncode}"
