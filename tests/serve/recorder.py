"""A recorder of decode steps that needs no GPU."""

from collections.abc import Callable


class Repeats:
    """Tries a step, as recording on a GPU does, and then repeats it."""

    def __init__(self, failing: int | None = None) -> None:
        self.recorded = self.replayed = 0
        self._failing = failing

    def record(self, step: Callable[[], None]) -> Callable[[], None]:
        step()
        step()
        if self.recorded == self._failing:
            raise RuntimeError("called a synchronizing\nCUDA operation")
        self.recorded += 1

        def replay() -> None:
            self.replayed += 1
            step()

        return replay
