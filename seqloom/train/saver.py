"""Checkpoints of a run, written at once or in the background while training goes on.

In the background, weights, buffers and optimizer state are first copied to memory of their own (pinned where they come
from a GPU), which takes a fraction of the time that the disk needs; one thread then writes the copy as any checkpoint
is written. Frozen parameters do not change and are not copied. The next save waits for the one before it, and so does
whoever leaves the `with` block, so the folder's lock is never given up under a writer.
"""

import copy
import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from seqloom.core.checkpoint.run_folder import RunFolder
from seqloom.train.run import Run
from seqloom.train.state import StepContents
from seqloom.train.task import Task


class Saver:
    """Writes the checkpoints of one run; everything it tells, it tells from the thread that calls it.

    Attributes:
        step: the last one it was given, at first the one that training begins after.
    """

    def __init__(self, place: RunFolder, run: Run, task: Task, step: int, saved: Callable[[int], None]) -> None:
        """
        Args:
            saved: told each step that is complete on the disk.
        """
        self._place, self._run, self._task, self._saved = place, run, task, saved
        self._copies: _Copies | None = None
        self._thread: threading.Thread | None = None
        self.step = step
        self._failure: BaseException | None = None

    def __enter__(self) -> "Saver":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: object) -> None:
        if error is None:
            self.wait()
        elif self._thread is not None:
            self._thread.join()  # what went wrong is on its way already; a failed save would only hide it

    def save(self, contents: StepContents) -> None:
        """Commit a step; in the background if the run asks for it.

        Raises:
            CheckpointError: this step, or the one before it, could not be written.
        """
        self.wait()
        self.step = contents.facts["step"]
        if not self._run.train.async_save:
            self._write(contents)
            self._saved(self.step)
            return
        if not contents.copied:
            self._copies = self._copies or _Copies(contents)
            contents = self._copies.take(contents)
        self._thread = threading.Thread(target=self._try, args=(contents,), daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Tell of a save that has ended since.

        Raises:
            CheckpointError: it failed.
        """
        if self._thread is not None and not self._thread.is_alive():
            self.wait()

    def wait(self) -> None:
        """Let the save that is being written come to its end.

        Raises:
            CheckpointError: it failed.
        """
        if self._thread is None:
            return
        self._thread.join()
        self._thread = None
        if self._failure is not None:
            raise self._failure
        self._saved(self.step)

    def _try(self, contents: StepContents) -> None:
        try:
            self._write(contents)
        except BaseException as error:
            self._failure = error

    def _write(self, contents: StepContents) -> None:
        step = contents.facts["step"]
        self._place.save(step, lambda folder: contents.write(folder, self._run, self._task), self._run.train.keep_steps)


class _Copies:
    """A model and optimizer state of the same shapes on the CPU, filled anew for each save."""

    def __init__(self, contents: StepContents) -> None:
        model: nn.Module = contents.model
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        memo: dict[int, Any] = {id(parameter): parameter for parameter in model.parameters()}
        memo |= {id(parameter): nn.Parameter(_like(parameter)) for parameter in trained}
        memo |= {id(buffer): _like(buffer) for buffer in model.buffers()}
        self._model = copy.deepcopy(model, memo)
        self._pairs = [(memo[id(tensor)], tensor) for tensor in (*trained, *model.buffers())]
        self._optimizer = {name: _like(tensor) for name, tensor in contents.optimizer.items()}

    @torch.no_grad()
    def take(self, contents: StepContents) -> StepContents:
        """The contents as they are now, out of reach of the steps to come."""
        moves = [*self._pairs, *((self._optimizer[name], tensor) for name, tensor in contents.optimizer.items())]
        for mine, theirs in moves:
            mine.copy_(theirs, non_blocking=True)
        if any(theirs.is_cuda for _, theirs in moves):
            torch.cuda.synchronize()
        return contents._replace(model=self._model, optimizer=self._optimizer)


def _like(tensor: Tensor) -> Tensor:
    return torch.empty_like(tensor, device="cpu", requires_grad=False, pin_memory=tensor.is_cuda)
