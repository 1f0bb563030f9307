"""A disk that loses, at any moment, everything that was not forced to it: the worst a power loss may do.

What `fsync` was called on lasts: of a file its content, of a folder its list of names. A file or folder that was never
forced is empty, a name that was added, moved or removed since is as it was.
"""

import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from seqloom.core.checkpoint.run_folder import RunFolder
from seqloom.core.logs import MetricsLog, read_metrics


class Disk:
    """What is safe of the files under a root, by inode, after each call that makes more of it safe.

    Patches `os` while it records; `saved` is counted by the test, so that each moment knows what must not be lost.
    """

    def __init__(self, root: Path, patch: pytest.MonkeyPatch) -> None:
        self.root = root.stat().st_ino
        self.safe: dict[int, Any] = {}
        self.saved = 0
        self.moments: list[tuple[dict[int, Any], int]] = []
        self._paths: dict[int, Path] = {}
        self._kept: list[int] = []
        real = os.open

        def watched(path: Any, *args: Any, **kwargs: Any) -> int:
            descriptor = real(path, *args, **kwargs)
            self._paths[descriptor] = Path(path)
            return descriptor

        patch.setattr(os, "open", watched)
        patch.setattr(os, "fsync", self._keep)

    def note(self, saved: int) -> None:
        """From now on this many saves must not be lost."""
        self.saved = saved
        self.moments.append((dict(self.safe), saved))

    def _keep(self, descriptor: int) -> None:
        self._kept.append(os.dup(descriptor))  # an open file's inode is not given to another one
        path, number = self._paths[descriptor], os.fstat(descriptor).st_ino
        if path.is_dir():
            self.safe[number] = {entry.name: self._describe(entry) for entry in path.iterdir()}
        else:
            self.safe[number] = path.read_bytes()
        self.note(self.saved)

    @staticmethod
    def _describe(entry: Path) -> tuple[int, bool, str | None]:
        facts = entry.lstat()
        return facts.st_ino, stat.S_ISDIR(facts.st_mode), os.readlink(entry) if entry.is_symlink() else None

    def close(self) -> None:
        for descriptor in self._kept:
            os.close(descriptor)


def _rebuild(safe: dict[int, Any], number: int, folder: Path) -> None:
    """Lay out what is safe, as a machine finds it when it starts again."""
    folder.mkdir()
    for name, (inner, is_folder, link) in safe.get(number, {}).items():
        if link is not None:
            (folder / name).symlink_to(link)
        elif is_folder:
            _rebuild(safe, inner, folder / name)
        else:
            (folder / name).write_bytes(safe.get(inner, b""))


def _write(text: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        for name in ("config.json", "model.safetensors", "state.json"):
            (folder / name).write_text(f"{name} {text}")

    return write


def _refuse(line: str) -> None:
    raise AssertionError(f"unexpected damage: {line}")


def test_no_finished_step_is_lost_with_the_power(tmp_path: Path) -> None:
    disk_root, after = tmp_path / "disk", tmp_path / "after"
    disk_root.mkdir()
    steps = [1, 2, 3, 3, 2]  # in the end a step is saved again, and training was set back
    with pytest.MonkeyPatch.context() as patch:
        disk = Disk(disk_root, patch)
        run = RunFolder(disk_root / "runs" / "tiny")
        with run.lock():
            log = MetricsLog(run.metrics_path)
            for number, step in enumerate(steps, start=1):
                log.append({"step": step})
                run.save(step, _write(str(number)), keep=2)
                disk.note(number)
    disk.close()
    for safe, saved in disk.moments:
        shutil.rmtree(after, ignore_errors=True)
        _rebuild(safe, disk.root, after)
        run = RunFolder(after / "runs" / "tiny")
        with run.lock():
            found = run.open_latest(_refuse)
            assert (found and found[0]) in [None, *steps][saved : saved + 2]
            if found:
                assert found[0] in [record["step"] for record in read_metrics(run.metrics_path)]
                assert (run.path / "config.json").read_bytes() == (found[1] / "config.json").read_bytes()
            run.save(9, _write("later"), keep=2)
    assert len(disk.moments) > 50
