"""Groups of processes that train together, each forked in milliseconds from a parent that has imported everything.

The parent never computes itself, since a child inherits its memory but not its threads. Every group meets at a port of
its own; what torchrun would say to a process is in its environment.
"""

import faulthandler
import itertools
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

PATIENCE_SECONDS = 60


@dataclass(frozen=True)
class Order:
    """One training by a group.

    Attributes:
        run: path of a run.yaml.
        folder: its run folder.
        parallel: settings of `train.parallel` by name.
        changes: settings of `train` by name.
        excited: begin with weights under which every path matters, instead of fresh ones.
        gradients: file that the first step's summed gradients go to, each whole.
        fault: what befalls a rank: "data" or "bug" is raised, "kill" and "term" are signals, "nan" is its loss,
            once.
        fault_rank, fault_step: whom, and before which step, counted from 0.
        slow_disk: a save takes longer than a rank is given to end after another one has.
    """

    run: str
    folder: str
    ranks: int = 1
    parallel: tuple[tuple[str, int], ...] = ()
    changes: tuple[tuple[str, object], ...] = ()
    excited: bool = False
    gradients: str | None = None
    fault: str | None = None
    fault_rank: int = 0
    fault_step: int = 0
    slow_disk: bool = False


class Ended(NamedTuple):
    """How a group ended: exit codes by rank, what it said on standard error, and after how many seconds."""

    codes: list[int]
    errors: str
    seconds: float


class Groups:
    """Starts groups and says how they ended."""

    def __init__(self) -> None:
        tests = str(Path(__file__).parents[1])
        self._process = subprocess.Popen(
            [sys.executable, "-m", "distributed.group"],
            env={**os.environ, "PYTHONPATH": tests, "OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def train(self, order: Order) -> Ended:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(asdict(order)) + "\n")
        self._process.stdin.flush()
        return Ended(*json.loads(self._process.stdout.readline()))

    def close(self) -> None:
        self._process.communicate()


def serve() -> None:
    """Read orders from standard input and answer each with how its group ended."""
    import torch
    import torch._dynamo
    from distributed import work

    torch.set_num_threads(1)
    work.warm_up()
    ports = _free_ports()
    for line in sys.stdin:
        order = Order(**json.loads(line))
        log = Path(order.folder).with_suffix(".errors")
        log.parent.mkdir(parents=True, exist_ok=True)
        began = time.monotonic()
        port = next(ports)
        numbers = [_fork(order, rank, port, log, work.work) for rank in range(order.ranks)]
        codes = _wait(numbers, began + PATIENCE_SECONDS)
        seconds = time.monotonic() - began
        print(json.dumps([codes, log.read_text() if log.exists() else "", seconds]), flush=True)
        log.unlink(missing_ok=True)


def _fork(order: Order, rank: int, port: int, log: Path, work: object) -> int:
    number = os.fork()
    if number:
        return number
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    os.environ |= {"WORLD_SIZE": str(order.ranks), "LOCAL_WORLD_SIZE": str(order.ranks)}
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 2)
    os.dup2(2, 1)
    faulthandler.enable(descriptor)
    work(order)  # type: ignore[operator]
    raise AssertionError("work ends the process")


def _wait(numbers: list[int], until: float) -> list[int]:
    """Exit codes; those who are late are killed."""
    codes: dict[int, int] = {}
    while len(codes) < len(numbers):
        for number in numbers:
            if number not in codes:
                found, status = os.waitpid(number, os.WNOHANG)
                if found:
                    codes[number] = os.waitstatus_to_exitcode(status)
                elif time.monotonic() > until:
                    os.kill(number, 9)
        time.sleep(0.01)
    return [codes[number] for number in numbers]


def _free_ports() -> Iterator[int]:
    """Ports below those that systems give to outgoing connections, which could take one before its group listens."""
    lowest, highest = 10_000, 32_000
    for number in itertools.count(os.getpid() * 97):
        port = lowest + number % (highest - lowest)
        try:
            with socket.socket() as probe:
                probe.bind(("localhost", port))
        except OSError:
            continue
        yield port


if __name__ == "__main__":
    serve()
