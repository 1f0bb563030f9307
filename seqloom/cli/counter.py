"""How far a long list is: a live line on a terminal, a plain line now and then anywhere else."""

import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

_SECONDS = 30.0


class Counter:
    """Counts to `total`, from what an earlier run has finished; used in a `with` block.

    Args:
        what: the word before the numbers.
    """

    def __init__(self, console: Console, what: str, total: int, done: int = 0) -> None:
        self._console, self._what, self._total, self._done = console, what, total, done
        columns = [TextColumn(what), BarColumn(20), MofNCompleteColumn(), TextColumn("{task.fields[note]}")]
        self._live = Progress(*columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal)
        self._line = self._live.add_task(what, total=total, completed=done, note="")
        self._due = time.monotonic() + _SECONDS

    def __enter__(self) -> "Counter":
        if self._done:
            self._say(f"{self._done:,} of {self._total:,} were {self._what} before")
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def advance(self, note: str) -> None:
        """One more is done; `note` stands behind the numbers."""
        self._done += 1
        self._live.update(self._line, completed=self._done, note=note)
        if not self._console.is_terminal and (time.monotonic() >= self._due or self._done == self._total):
            self._say(f"{self._what} {self._done:,} of {self._total:,}  {note}")
            self._due = time.monotonic() + _SECONDS

    def _say(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)
