"""Ctrl-C, SIGTERM and SIGUSR1 as a wish to stop, granted where nothing is lost by it.

    attempted work    data preparation, building, an evaluation: given up at once, since it can be done again
    everything else   a step, a save: goes on to its end, after which the loop sees the wish and leaves

The first signal is noted, and the handlers that stood before come back, so that a second one acts at once. Signals
that the process was told to ignore stay ignored; outside the main thread nothing is installed.

SIGUSR1 is what batch systems send ahead of a time limit; a job script can tell by the exit code that it is to be
started again.
"""

import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any, TypeVar

from seqloom.core.errors import SeqloomError

T = TypeVar("T")

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class Interrupted(SeqloomError):  # noqa: N818  # like KeyboardInterrupt, it is no mistake
    """A signal ended the run, and all steps done are saved.

    Attributes:
        step: steps done and saved.
        exit_code: what a shell expects of a program that a signal ended: 130 for Ctrl-C, 143 for SIGTERM, 138 for
            SIGUSR1.
    """

    def __init__(self, step: int, number: int) -> None:
        saved = f"step {step} is saved" if step else "no step was done"
        super().__init__(f"interrupted; {saved}, and the same command goes on from there")
        self.step = step
        self.exit_code = 128 + number


class _GiveUp(BaseException):
    """Leaves attempted work; no `except Exception` on the way may hold it up."""


class StopRequest:
    """Within its `with` block, `signal` is the number of the signal that asked to stop, or None."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self._attempting = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *error: object) -> None:
        self._step_back()

    def attempt(self, work: Callable[[], T]) -> T | None:
        """What `work` gives; None if a signal came before its end, which then is where it was left."""
        try:
            self._attempting = True
            try:
                return work() if self.signal is None else None
            finally:
                self._attempting = False
        except _GiveUp:
            self._attempting = False
            return None

    def agree(self) -> None:
        """Between two steps: where several processes train together, hear what the others heard."""

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.signal = number
        self._step_back()
        if self._attempting:
            raise _GiveUp

    def _step_back(self) -> None:
        while self._before:
            number, handler = self._before.popitem()
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
