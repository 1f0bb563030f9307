"""Ctrl-C and SIGTERM as a wish that the loop grants between two steps.

The first signal is noted, and the handlers that stood before come back, so that a second one acts at once. Signals
that the process was told to ignore stay ignored; outside the main thread nothing is installed.
"""

import signal
import threading
from types import FrameType
from typing import Any

from seqloom.core.errors import SeqloomError


class Interrupted(SeqloomError):  # noqa: N818  # like KeyboardInterrupt, it is no mistake
    """A signal ended the run after a whole step, and that step is saved.

    Attributes:
        step: steps done and saved.
        exit_code: what a shell expects of a program that a signal ended (130 for Ctrl-C, 143 for SIGTERM).
    """

    def __init__(self, step: int, number: int) -> None:
        super().__init__(f"interrupted; step {step} is saved, and the same command goes on from there")
        self.step = step
        self.exit_code = 128 + number


class StopRequest:
    """Within its `with` block, `signal` is the number of the signal that asked to stop, or None."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *error: object) -> None:
        self._step_back()

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.signal = number
        self._step_back()

    def _step_back(self) -> None:
        while self._before:
            number, handler = self._before.popitem()
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
