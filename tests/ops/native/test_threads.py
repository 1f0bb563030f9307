"""The pool of threads: every task once, the same bits with any number of threads, also from inside and after fork."""

import ctypes
import math
import os
import threading
from collections.abc import Callable

import numpy as np
import pytest

COUNTS = (1, 2, 3, 8)


@pytest.fixture(scope="module")
def pool(probe: Callable[..., ctypes.CDLL]) -> ctypes.CDLL:
    found = probe("threads_probe.cpp", "threads.cpp")
    found.count_runs.argtypes = [ctypes.c_int64, ctypes.c_void_p, ctypes.c_int32]
    found.sum.argtypes = [ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_int32]
    found.sum.restype = ctypes.c_double
    found.nested.argtypes = [ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int32]
    found.scratch_works.argtypes = [ctypes.c_int64, ctypes.c_int64]
    found.first_of_scratch.restype = ctypes.c_float
    return found


def runs(pool: ctypes.CDLL, tasks: int, threads: int) -> list[int]:
    counts = np.zeros(max(tasks, 1), dtype=np.int32)
    pool.count_runs(tasks, counts.ctypes.data, threads)
    return [int(count) for count in counts[:tasks]]


@pytest.mark.parametrize("threads", COUNTS)
@pytest.mark.parametrize("tasks", [0, 1, 2, 7, 1000])
def test_every_task_runs_once(pool: ctypes.CDLL, tasks: int, threads: int) -> None:
    for _ in range(50):
        assert runs(pool, tasks, threads) == [1] * tasks


def test_threads_work_at_the_same_time(pool: ctypes.CDLL) -> None:
    assert pool.meet() == 2


def test_the_same_bits_with_any_number_of_threads(pool: ctypes.CDLL) -> None:
    x = np.random.default_rng(0).standard_normal(10_007).astype(np.float32)
    sums = {pool.sum(x.ctypes.data, len(x), 64, threads) for threads in COUNTS for _ in range(20)}
    assert len(sums) == 1
    assert sums.pop() == pytest.approx(float(x.astype(np.float64).sum()), abs=1e-9)


def test_a_call_from_inside_a_task_stays_in_its_thread(pool: ctypes.CDLL) -> None:
    counts = np.zeros((40, 9), dtype=np.int32)
    strayed = np.zeros(1, dtype=np.int32)
    pool.nested(40, 9, counts.ctypes.data, strayed.ctypes.data, 3)
    assert (counts == 1).all()
    assert strayed[0] == 0


def test_callers_in_several_threads_do_not_meet(pool: ctypes.CDLL) -> None:
    """ctypes gives the interpreter free during a call, so these really overlap."""
    wrong: list[list[int]] = []

    def call() -> None:
        wrong.extend(found for _ in range(100) if (found := runs(pool, 200, 2)) != [1] * 200)

    callers = [threading.Thread(target=call) for _ in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert wrong == []


def in_child(check: Callable[[], bool]) -> int:
    """Run a check in a forked child, which may not take longer than twenty seconds; 0 if it holds."""
    number = os.fork()
    if number == 0:
        code = 1
        try:
            import signal

            signal.alarm(20)
            code = 0 if check() else 2
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(number, 0)[1])


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_has_a_pool_of_its_own(pool: ctypes.CDLL) -> None:
    assert pool.meet() == 2  # the parent's threads exist before the fork
    assert in_child(lambda: pool.meet() == 2 and runs(pool, 100, 3) == [1] * 100) == 0
    assert in_child(lambda: in_child(lambda: pool.meet() == 2) == 0 and pool.meet() == 2) == 0
    assert pool.meet() == 2


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_child_forked_while_another_thread_is_at_work(pool: ctypes.CDLL) -> None:
    stop = threading.Event()

    def work() -> None:
        while not stop.is_set():
            runs(pool, 2000, 2)

    worker = threading.Thread(target=work)
    worker.start()
    try:
        assert [in_child(lambda: runs(pool, 100, 2) == [1] * 100) for _ in range(10)] == [0] * 10
    finally:
        stop.set()
        worker.join()


def test_scratch_is_aligned_and_each_slot_is_its_own(pool: ctypes.CDLL) -> None:
    assert pool.scratch_works(1000, 100_000) == 1
    assert pool.scratch_works(3, 64) == 1


def test_scratch_can_be_poisoned(pool: ctypes.CDLL) -> None:
    pool.seqloom_poison_scratch(1)
    try:
        assert math.isnan(pool.first_of_scratch())
    finally:
        pool.seqloom_poison_scratch(0)
