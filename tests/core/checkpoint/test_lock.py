"""One writer at a time; a dead one's lock is free at once, even when its children live on."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from seqloom.core.checkpoint.lock import hold
from seqloom.core.errors import CheckpointError


def _holder(path: Path, then: str = "print('held', flush=True)") -> "subprocess.Popen[str]":
    script = (
        "import os, sys, time\nfrom pathlib import Path\nfrom seqloom.core.checkpoint.lock import hold\n"
        f"with hold(Path(sys.argv[1])):\n    {then}\n    time.sleep(60)"
    )
    return subprocess.Popen([sys.executable, "-c", script, str(path)], stdout=subprocess.PIPE, text=True)


def _first_line(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    return process.stdout.readline()


def test_a_live_holder_is_named_and_a_dead_one_is_taken_over(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    with _holder(path) as process:
        try:
            assert _first_line(process) == "held\n"
            with (
                pytest.raises(CheckpointError, match=rf"{tmp_path}: in use by process {process.pid} on .* since 20"),
                hold(path),
            ):
                pass
        finally:
            process.kill()
    with hold(path):
        pass


def test_a_child_left_behind_does_not_hold_the_lock(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    fork = "child = os.fork()\n    if not child: print(os.getpid(), flush=True)"  # the child, once it is past the hook
    with _holder(path, fork) as process:
        child = int(_first_line(process))
        try:
            process.kill()
            process.wait()
            os.kill(child, 0)
            with hold(path):
                pass
        finally:
            os.kill(child, signal.SIGKILL)


def test_two_holders_in_one_process_exclude_each_other(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    with hold(path):
        with pytest.raises(CheckpointError, match=f"process {os.getpid()}"), hold(path):
            pass
        with pytest.raises(CheckpointError), hold(path):  # being turned away does not free it
            pass
    with hold(path):
        pass


def test_a_holder_that_has_not_signed_yet_still_excludes(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    with hold(path):
        os.truncate(path, 0)
        with pytest.raises(CheckpointError, match="in use by another process"), hold(path):
            pass
