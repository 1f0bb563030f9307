"""What becomes of a step whose loss or gradient is not finite; it has touched neither weights nor optimizer state.

    stop        the run ends
    skip        the batch is left out, and the same step takes the next one
    roll_back   training goes back to the last checkpoint and leaves out every batch from there to this one

What was left out is part of the state: batches keep their numbers, a step only takes a later one, so a run stopped and
resumed anywhere learns from the same batches. Paper: PaLM, section 5.1 (going back and leaving batches out).
"""

from collections.abc import Callable

import torch

from seqloom.core.checkpoint.run_folder import RunFolder
from seqloom.core.errors import NumericsError
from seqloom.train.observer import Observer
from seqloom.train.run import Run
from seqloom.train.saver import Saver
from seqloom.train.state import TrainState
from seqloom.train.task import Task
from seqloom.train.trackers import Records


class Recovery:
    """Takes the steps of a run and deals with those that cannot be taken."""

    def __init__(
        self, run: Run, task: Task, state: TrainState, place: RunFolder, saver: Saver, records: Records, watch: Observer
    ) -> None:
        self._settings, self._task, self._state = run.train, task, state
        self._place, self._saver, self._records, self._watch = place, saver, records, watch
        self._step, self._in_row = -1, 0

    def attempt(self, step: Callable[[], dict[str, float]]) -> dict[str, float] | None:
        """The metrics of a step, or None if batches were left out instead.

        Raises:
            NumericsError: the run is to stop, batches were left out too often in a row, or there is no checkpoint to
                go back to.
        """
        if self._settings.on_not_finite == "stop":
            return step()
        buffers = [(buffer, buffer.clone()) for buffer in self._state.model.buffers()]
        try:
            return step()
        except NumericsError as error:
            self._state.forget_gradients()
            with torch.no_grad():
                for buffer, kept in buffers:  # what the forward pass counted
                    buffer.copy_(kept)
            self._leave_out(error)
            return None

    def _leave_out(self, error: NumericsError) -> None:
        state, last = self._state, self._state.position
        if self._settings.on_not_finite == "roll_back":
            self._roll_back(error)
        first = state.position
        self._in_row = self._in_row + 1 if state.step == self._step else 1
        self._step = state.step
        if self._in_row > self._settings.not_finite_limit:
            raise NumericsError(
                f"{error}; batches were left out {self._settings.not_finite_limit} times in a row at this step "
                "(train.not_finite_limit)"
            ) from error
        state.left_out.append((first, last))
        # Logged as part of the step to come, so that whoever resumes before it logs it again.
        self._records.add("left_out", {"step": state.step + 1, "first_batch": first, "last_batch": last})
        batches = f"batch {first}" if first == last else f"batches {first} to {last}"
        self._watch.on_message(f"{str(error).split(';')[0]}; {batches} left out, going on after step {state.step}")

    def _roll_back(self, error: NumericsError) -> None:
        self._saver.wait()
        found = self._place.open_latest(self._watch.on_message)
        if found is None:
            raise NumericsError(f"{error}; there is no checkpoint yet to roll back to") from error
        self._state.read(found[1], self._task)
        self._records.cut(self._state.step)
