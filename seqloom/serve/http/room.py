"""How many requests may be under way; the next is told when to come again, before any work is done for it."""

import contextlib
import time
from collections import deque
from collections.abc import Iterator

from seqloom.serve.http.errors import RefusedError


class Room:
    """
    Args:
        places: most requests at a time, those that wait for the engine included.
    """

    def __init__(self, places: int) -> None:
        self.places = places
        self.taken = 0
        self._ends: deque[float] = deque(maxlen=64)

    def check(self, count: int) -> None:
        """
        Raises:
            RefusedError: there is no place for so many more, now (429) or ever.
        """
        if count > self.places:
            raise RefusedError(400, f"{count} answers are asked for at once; at most {self.places} can be")
        if self.taken + count > self.places:
            raise RefusedError(
                429, f"{self.taken} requests are under way, and at most {self.places} may be; try again later",
                code="rate_limit_exceeded", retry_after=self._wait(count),
            )  # fmt: skip

    @contextlib.contextmanager
    def keep(self, count: int) -> Iterator[None]:
        """Keep places while requests are made ready; they are given back at the end, when answers hold their own."""
        self.taken += count
        try:
            yield
        finally:
            self.taken -= count

    def leave(self) -> None:
        """An answer ended."""
        self.taken -= 1
        self._ends.append(time.monotonic())

    def _wait(self, count: int) -> float:
        """Seconds until so many places will be free, at the pace of the latest ends."""
        if len(self._ends) < 2:
            return 5.0
        pace = (time.monotonic() - self._ends[0]) / len(self._ends)
        return min(60.0, pace * (self.taken + count - self.places))
