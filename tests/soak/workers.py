"""Trainings that die where they are told to, in processes that start in milliseconds.

A parent process imports everything once and forks a child for each training; it never computes itself, since a child
inherits its memory but not its threads. A child can be told to kill itself at the N-th effect on the disk inside a save
or a recovery, before or after the effect; anyone can kill it from outside at any other instant.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

EFFECTS = ("open", "write", "fsync", "mkdir", "replace", "symlink", "unlink", "rmdir")


@dataclass(frozen=True)
class Order:
    """One training.

    Attributes:
        folder: its run folder.
        die_at: kill the process at this effect on the disk inside a save or a recovery, counted from 0.
        before: kill before the effect, else after it.
        background: checkpoints are written while training goes on.
    """

    folder: str
    die_at: int | None = None
    before: bool = True
    background: bool = False

    @property
    def run(self) -> Any:
        """The run to train."""
        from train.toy import ToyRun

        run = ToyRun()
        return replace(run, train=replace(run.train, async_save=self.background))


class Workers:
    """Starts trainings and says how they ended."""

    def __init__(self) -> None:
        tests = str(Path(__file__).parents[1])
        self._process = subprocess.Popen(
            [sys.executable, "-m", "soak.workers"],
            env={**os.environ, "PYTHONPATH": tests, "OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def train(self, order: Order, kill_after: float | None = None) -> int:
        """Run a training to its end.

        Args:
            kill_after: seconds after which it is killed from outside.
        Returns:
            its exit code; -9 if it was killed.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(asdict(order)) + "\n")
        self._process.stdin.flush()
        number = int(self._process.stdout.readline())
        if kill_after is not None:
            time.sleep(kill_after)
            with contextlib.suppress(ProcessLookupError):
                os.kill(number, signal.SIGKILL)
        return int(self._process.stdout.readline())

    def close(self) -> None:
        self._process.communicate()


def serve() -> None:
    """Read orders from standard input; answer each with a process number and an exit code."""
    # What is imported here costs a child nothing; a first optimizer alone imports torch._dynamo for seconds.
    import torch
    import torch._dynamo
    from train.toy import ToyRun

    import seqloom.train.loop  # noqa: F401
    from seqloom.core.config import to_yaml

    to_yaml(ToyRun())
    torch.set_num_threads(1)
    for line in sys.stdin:
        order = Order(**json.loads(line))
        number = os.fork()
        if number == 0:
            work(order)
        print(number, flush=True)
        _, status = os.waitpid(number, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


def work(order: Order) -> None:
    """Train in this process and end it, one way or the other."""
    from seqloom.train.loop import train

    code = 1
    try:
        with dying(order):
            train(order.run, order.folder)
        code = 0
    finally:
        os._exit(code)


@contextlib.contextmanager
def dying(order: Order) -> Iterator[list[str]]:
    """Count effects on the disk while a run folder is saved or opened, and die at the chosen one.

    Gives the list of effects so far.
    """
    from seqloom.core.checkpoint.run_folder import RunFolder

    effects: list[str] = []
    inside = 0

    def watched(name: str, real: Any) -> Any:
        def effect(*args: Any, **kwargs: Any) -> Any:
            if not inside:
                return real(*args, **kwargs)
            mine = len(effects) == order.die_at
            effects.append(name)
            if mine and order.before:
                os.kill(os.getpid(), signal.SIGKILL)
            result = real(*args, **kwargs)
            if mine:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return effect

    def entered(real: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal inside
            inside += 1
            try:
                return real(*args, **kwargs)
            finally:
                inside -= 1

        return call

    before = {name: getattr(os, name) for name in EFFECTS}
    methods = {name: getattr(RunFolder, name) for name in ("save", "open_latest")}
    try:
        for name, real in before.items():
            setattr(os, name, watched(name, real))
        for name, real in methods.items():
            setattr(RunFolder, name, entered(real))
        yield effects
    finally:
        for name, real in before.items():
            setattr(os, name, real)
        for name, real in methods.items():
            setattr(RunFolder, name, real)


if __name__ == "__main__":
    serve()
