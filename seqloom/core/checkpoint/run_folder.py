"""A training's folder: its checkpoints, and at the same time a model folder that other tools load as it is.

    RUN/steps/00000250/     one complete checkpoint: the model folder and, beside it, what training needs to go on
    RUN/latest              -> steps/00000250
    RUN/model.safetensors   -> latest/model.safetensors, and so on for every file that a model folder has
    RUN/metrics.jsonl       what was logged; RUN/.lock while someone writes here

A save is one rename (see `commit.py`), `latest` moves after it, and old steps go last, so that a crash, a full disk or
a power loss at any instant leaves the steps before it whole. Every file is checked against its digest before training
goes on from it; damage is reported and the next older step is taken.
"""

import contextlib
import os
import re
import warnings
from collections.abc import Callable, Iterator
from fnmatch import fnmatchcase
from pathlib import Path

from seqloom.core.checkpoint import commit, lock, manifest
from seqloom.core.errors import CheckpointError

_LATEST = "latest"
_ONLY_FOR_TRAINING = (
    manifest.NAME, "state.json", "optim*.safetensors", "rng*.safetensors", "task*.safetensors", "amax*.safetensors",
)  # fmt: skip


def model_files(folder: Path) -> list[str]:
    """Names of those files of a checkpoint that make it a model folder, sorted."""
    names = (entry.name for entry in folder.iterdir())
    return sorted(name for name in names if not any(fnmatchcase(name, pattern) for pattern in _ONLY_FOR_TRAINING))


class RunFolder:
    """Where one run keeps its checkpoints. Creating the object touches nothing on the disk."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._locked = False
        self._damaged: set[int] = set()

    def __repr__(self) -> str:
        return f"RunFolder('{self.path}')"

    @property
    def metrics_path(self) -> Path:
        """Where the run logs what it measures."""
        return self.path / "metrics.jsonl"

    def steps(self) -> list[int]:
        """Steps with a finished checkpoint, rising; whether its files are still as written is not looked at."""
        with self._explained("cannot be read"):
            folder = self.path / "steps"
            names = os.listdir(folder) if folder.is_dir() else []
            return sorted(int(name) for name in names if re.fullmatch(r"\d{8,}", name) and (folder / name).is_dir())

    def folder(self, step: int) -> Path:
        """Where the checkpoint of a step is, or would be."""
        return self.path / "steps" / f"{step:08d}"

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Be the only writer, making the folder if needed; tidies what a dead writer left.

        Raises:
            CheckpointError: another live process writes here, the folder or disk cannot be written, or the folder holds
                a model that is not a run's.
        """
        with contextlib.ExitStack() as stack:
            with self._explained("cannot be used for a run"):
                self._refuse_foreign()
                commit.make_folder(self.path / "steps")
                stack.enter_context(lock.hold(self.path / ".lock"))
                for folder in (self.path, self.path / "steps"):
                    commit.sweep(folder)
                    commit.check_writable(folder)
            self._locked = True
            try:
                yield
            finally:
                self._locked = False

    def save(self, step: int, write: Callable[[Path], object], keep: int) -> None:
        """Commit a checkpoint that `write` fills into a folder it is given; then `latest` moves and old steps go.

        Kept are this step and the newest `keep - 1` before it that were not found damaged. Steps after this one belong
        to a course of the run that was left (its end was damaged, or training was set back) and go too.

        Raises:
            CheckpointError: a file could not be written; all earlier steps are as they were.
        """
        assert self._locked, "a run folder is written by the holder of its lock"
        assert keep >= 1

        def fill(folder: Path) -> None:
            write(folder)
            manifest.write_manifest(folder)

        with self._explained(f"step {step} could not be saved; earlier checkpoints are untouched"):
            if self.metrics_path.exists():
                commit.sync(self.metrics_path)  # what led to this step must last as long as the step
                commit.sync(self.path)
            commit.commit_folder(self.folder(step), fill)
            self._damaged.discard(step)
            self._publish(step)
            before = [other for other in self.steps() if other < step and other not in self._damaged]
            kept = {step, *before[max(0, len(before) - (keep - 1)) :]}
            for other in self.steps():
                if other not in kept:
                    commit.remove_folder(self.folder(other))

    def open_latest(self, report: Callable[[str], None] = warnings.warn) -> tuple[int, Path] | None:
        """The newest checkpoint that is whole, as step and folder; None if nothing was ever saved.

        Under the lock it also becomes what `latest` points to.

        Args:
            report: called with one line for each damaged step that was passed over.
        Raises:
            CheckpointError: there are checkpoints and none is whole; all damage is listed.
        """
        damage: dict[int, str] = {}
        for step in sorted({*self.steps(), *self._promised()}, reverse=True):
            problems = manifest.verify(self.folder(step))
            if not problems:
                for other, text in damage.items():
                    report(f"step {other}: {text}; using step {step}")
                if self._locked:
                    self._damaged.update(damage)
                    with self._explained("cannot be repaired"):
                        self._publish(step)
                return step, self.folder(step)
            damage[step] = ", ".join(problems)
        if damage:
            listed = "\n".join(f"  step {step}: {text}" for step, text in damage.items())
            raise CheckpointError(f"{self.path}: no checkpoint is whole\n{listed}\nto start afresh, remove the folder")
        return None

    def write_top(self, name: str, text: str) -> None:
        """Write a small file of the run itself, whole or not at all.

        Raises:
            CheckpointError: it cannot be written.
        """
        with self._explained("cannot be written"):
            commit.write_file(self.path / name, text.encode())

    def _promised(self) -> list[int]:
        """The step that `latest` names, which may be missing."""
        link = self.path / _LATEST
        found = re.fullmatch(r"steps/(\d{8,})", os.readlink(link)) if link.is_symlink() else None
        return [int(found[1])] if found else []

    def _publish(self, step: int) -> None:
        """Point `latest` to a step, and the top of the folder to its model files."""
        names = model_files(self.folder(step))
        for name in names:
            commit.set_link(self.path / name, f"{_LATEST}/{name}")
        commit.set_link(self.path / _LATEST, f"steps/{self.folder(step).name}")
        for entry in self.path.iterdir():
            if entry.name not in names and entry.is_symlink() and os.readlink(entry) == f"{_LATEST}/{entry.name}":
                os.unlink(entry)

    def _refuse_foreign(self) -> None:
        config = self.path / "config.json"
        if config.exists() and not config.is_symlink():
            raise CheckpointError(
                f"{self.path}: holds a model of its own (config.json is no link to a checkpoint); "
                "train into another folder"
            )

    @contextlib.contextmanager
    def _explained(self, what: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            reason = f"{error.strerror or error} ({error.filename})" if error.filename else error.strerror or str(error)
            raise CheckpointError(f"{self.path}: {what}: {reason}") from error
