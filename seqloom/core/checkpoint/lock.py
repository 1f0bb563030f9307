"""One writer at a time: a lock that the operating system drops when its holder dies, however it dies.

The file says who holds it, for the message to the one who is turned away; what excludes is the kernel's `flock` on it.
The file stays after release, since removing it would let two later comers lock two different files of one name.
"""

import contextlib
import fcntl
import json
import os
import socket
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from seqloom.core.errors import CheckpointError

_held: set[int] = set()


@contextlib.contextmanager
def hold(path: Path) -> Iterator[None]:
    """Hold the lock file `path` (made if missing) for the length of the `with` block.

    Raises:
        CheckpointError: another live process holds it; its process number, machine and start are named.
        OSError: the file cannot be made, written or locked.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    _held.add(descriptor)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CheckpointError(
                f"{path.parent}: in use by {_holder(descriptor)}; end that one first, or choose another folder"
            ) from None
        os.ftruncate(descriptor, 0)
        now = datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
        os.write(descriptor, json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "since": now}).encode())
        yield
    finally:
        _held.discard(descriptor)
        os.close(descriptor)


def _holder(descriptor: int) -> str:
    try:
        holder = json.loads(os.pread(descriptor, 4096, 0))
        return f"process {holder['pid']} on {holder['host']} since {holder['since']}"
    except (ValueError, TypeError, KeyError):  # it has locked and not yet signed
        return "another process"


def _let_go() -> None:
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


# A forked child shares the lock and would keep it after its parent's death.
os.register_at_fork(after_in_child=_let_go)
