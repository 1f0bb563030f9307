"""Which of several processes this one is, and the few words they exchange.

torchrun starts the processes and tells each its number in the environment. They form a grid: `data` ranks learn from
different rows, `context` ranks from different stretches of the same rows, `tensor` ranks hold slices of the same
matrices. `batch` is data and context together: all that hold different tokens. Without torchrun every axis has one
rank, nothing here communicates, and torch.distributed is never imported.

A rank that fails says why, once, in the store that all of them share. The others see it there and end too, also those
that wait in a collective for an answer that will never come.
"""

import contextlib
import itertools
import os
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from seqloom.core.errors import SeqloomError

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")

COLLECTIVE_TIMEOUT = timedelta(minutes=30)
LOOK_SECONDS, GRACE_SECONDS = 0.5, 4.0
"""How often a rank looks whether another one failed, and how long it then has to end by itself."""

_FAILURE = "seqloom/failure"


class PeerFailed(SeqloomError):  # noqa: N818  # it is the other one that failed
    """Another rank failed, and has said why; this one has nothing to add."""

    def __init__(self, reason: str, code: int) -> None:
        super().__init__(reason)
        self.exit_code = code


class RankLost(SeqloomError):  # noqa: N818  # a rank is lost, not an error
    """Another rank is gone and has said nothing: it was killed, or its machine cannot be reached."""

    exit_code = 1


@dataclass(frozen=True)
class Axis:
    """One direction of the grid as seen from this rank.

    Attributes:
        index: this rank's place on it.
        count: how many ranks it has.
        mesh: they as a one-dimensional DeviceMesh; None if there is one only.
    """

    index: int = 0
    count: int = 1
    mesh: Any = None

    def sum_(self, tensor: "Tensor") -> "Tensor":
        """Sum a tensor over the ranks, in place."""
        if self.count > 1:
            from torch import distributed

            distributed.all_reduce(tensor, group=self.mesh.get_group())
        return tensor

    def most_(self, tensor: "Tensor") -> "Tensor":
        """The largest over the ranks, element by element, in place."""
        if self.count > 1:
            from torch import distributed

            distributed.all_reduce(tensor, distributed.ReduceOp.MAX, group=self.mesh.get_group())
        return tensor

    def total(self, values: Sequence[float]) -> list[float]:
        """Sums of some numbers over the ranks, in FP64."""
        if self.count == 1:
            return list(values)
        import torch

        return self.sum_(torch.tensor(values, dtype=torch.float64)).tolist()

    def mine(self, tensor: "Tensor", dim: int) -> "Tensor":
        """This rank's stretch of a dimension that the ranks share evenly."""
        if self.count == 1:
            return tensor
        size = tensor.shape[dim] // self.count
        return tensor.narrow(dim, self.index * size, size)

    def join(self, tensor: "Tensor", dim: int) -> "Tensor":
        """All ranks' stretches one after another, without gradient."""
        if self.count == 1:
            return tensor
        import torch
        from torch import distributed

        parts = [torch.empty_like(tensor, memory_format=torch.contiguous_format) for _ in range(self.count)]
        distributed.all_gather(parts, tensor.contiguous(), group=self.mesh.get_group())
        return torch.cat(parts, dim)


@dataclass(frozen=True)
class Ranks:
    """The grid as seen from this rank.

    Attributes:
        expert: ranks among which the experts of a layer are dealt out; they are neighbours on `batch`.
        twins: ranks of `batch` that hold the same experts.
        local_size: ranks on this machine.
    """

    rank: int = 0
    size: int = 1
    local_size: int = 1
    data: Axis = field(default_factory=Axis)
    context: Axis = field(default_factory=Axis)
    tensor: Axis = field(default_factory=Axis)
    batch: Axis = field(default_factory=Axis)
    expert: Axis = field(default_factory=Axis)
    twins: Axis = field(default_factory=Axis)

    @property
    def main(self) -> bool:
        """Whether this rank writes, shows and logs for all."""
        return self.rank == 0

    def most(self, value: float) -> float:
        """The largest of all ranks' values."""
        if self.size == 1:
            return value
        import torch
        from torch import distributed

        largest = torch.tensor(value, dtype=torch.float64)
        distributed.all_reduce(largest, distributed.ReduceOp.MAX)
        return float(largest)

    def told(self, value: T) -> T:
        """The main rank's value, on every rank."""
        if self.size == 1:
            return value
        from torch import distributed

        box: list[Any] = [value]
        distributed.broadcast_object_list(box, src=0)
        return box[0]

    def everyone(self, value: T) -> list[T]:
        """All ranks' values, on every rank."""
        if self.size == 1:
            return [value]
        from torch import distributed

        values: list[Any] = [None] * self.size
        distributed.all_gather_object(values, value)
        return values

    @contextlib.contextmanager
    def main_first(self) -> Iterator[None]:
        """Let the main rank do the block's work before the others, who then find it done; it may take hours."""
        done = f"seqloom/done/{next(_turns)}"
        if not self.main:
            _wait_for(done)
        yield
        if self.size > 1 and self.main:
            _store().set(done, "1")


_here = Ranks()


def here() -> Ranks:
    """The grid that this process trains in; a single rank outside of `joined`."""
    return _here


def world() -> tuple[int, int]:
    """This process's number and how many torchrun started, (0, 1) without it; needs no torch."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def local() -> tuple[int, int]:
    """The same among the processes on this machine."""
    rank, size = world()
    return int(os.environ.get("LOCAL_RANK", str(rank))), int(os.environ.get("LOCAL_WORLD_SIZE", str(size)))


@contextlib.contextmanager
def joined(device: str) -> Iterator[None]:
    """Connect the processes that torchrun started, for the length of the block, and end them together.

    Args:
        device: "cpu" or "cuda": what they compute on.
    Raises:
        PeerFailed: another rank failed.
    """
    rank, size = world()
    if size == 1:
        yield
        return
    from torch import distributed

    backend = "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo"
    distributed.init_process_group(backend, timeout=COLLECTIVE_TIMEOUT)
    _ended.clear()
    threading.Thread(target=_watch, args=(rank,), daemon=True).start()
    try:
        yield
        distributed.barrier()
        _ended.set()
        distributed.destroy_process_group()
    except BaseException as error:
        _end_in(GRACE_SECONDS, exit_code(error))  # a collective that still waits would keep this process alive
        lost = RankLost(f"another rank is gone without a word, killed or cut off: {_first_line(error)}")
        told = lost if _is_broken_line(error) else error
        if announce(told):
            if rank == 0:
                time.sleep(2 * LOOK_SECONDS)  # perhaps it keeps the store in which the others will look
        elif (failure := _failure()) is not None:
            raise PeerFailed(failure[2], failure[1]) from error
        if told is lost:
            raise lost from error
        raise


@contextlib.contextmanager
def placed(ranks: Ranks) -> Iterator[Ranks]:
    """Make a grid the one that `here` gives, for the length of the block."""
    global _here
    before, _here = _here, ranks
    try:
        yield ranks
    finally:
        _here = before


_ended = threading.Event()
_turns = itertools.count()  # the same on all ranks, which take the same turns


def _store() -> Any:
    """A connection of its own to the store that all ranks share."""
    from torch.distributed import TCPStore  # type: ignore[attr-defined]  # torch leaves it out of its list

    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    return TCPStore(address, port, is_master=False, timeout=timedelta(seconds=5))


def _is_broken_line(error: BaseException) -> bool:
    """Whether a collective failed because a rank that it needs is not there."""
    from torch import distributed

    return isinstance(error, distributed.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def exit_code(error: BaseException) -> int:
    """What a process ends with that fails so."""
    if isinstance(error, SeqloomError):
        return error.exit_code
    return 130 if isinstance(error, KeyboardInterrupt) else 1


def announce(error: BaseException) -> bool:
    """Tell the other ranks why this one fails; False if another one was first, whose reason then counts."""
    rank, size = world()
    if size == 1:
        return True
    if isinstance(error, PeerFailed):
        return False
    if not isinstance(error, SeqloomError):
        time.sleep(LOOK_SECONDS)  # most likely only the echo of another rank's failure, whose reason is better
    with contextlib.suppress(Exception):  # the store goes with the process that keeps it
        first = _store().compare_set(_FAILURE, "", f"{rank} {exit_code(error)} {error}")
        return int(first.decode().split(" ", 1)[0]) == rank
    return True


def _failure() -> tuple[int, int, str] | None:
    """Rank, code and reason of the first failure, if that can still be learned."""
    with contextlib.suppress(Exception):
        return _read_failure(_store())
    return None


def _read_failure(store: Any) -> tuple[int, int, str] | None:
    if not store.check([_FAILURE]):
        return None
    rank, code, reason = store.get(_FAILURE).decode().split(" ", 2)
    return int(rank), int(code), reason


def _watch(rank: int) -> None:
    """End this process soon after another rank failed."""
    try:
        store = _store()
        while not _ended.wait(LOOK_SECONDS):
            if (failure := _read_failure(store)) is not None:
                if failure[0] != rank:
                    _end_in(GRACE_SECONDS, failure[1])
                return
    except Exception:
        if not _ended.is_set():
            _end_in(GRACE_SECONDS, 1)  # who kept the store is gone


def _wait_for(key: str) -> None:
    store = _store()
    while not store.check([key]):
        if (failure := _read_failure(store)) is not None:
            raise PeerFailed(failure[2], failure[1])
        time.sleep(LOOK_SECONDS)


def _end_in(seconds: float, code: int) -> None:
    timer = threading.Timer(seconds, os._exit, (code,))
    timer.daemon = True
    timer.start()
