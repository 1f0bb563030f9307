"""What a training carries from step to step, and its way to disk and back, bit for bit.

A step folder holds the public model folder and beside it:

    optim.safetensors   optimizer state by parameter name        rng.safetensors   torch's global generators
    state.json          position, units seen, seconds spent, batches left out, digest of the data
    run.yaml            the resolved run
    task.safetensors    only if batches depend on earlier ones: environments and what else the task goes on from
    amax.safetensors    only with delayed scaling: what earlier steps saw
    base.json           only if the run began with a model folder: which one that was

Data has no loader state: a batch is a pure function of seed and number, and its number is that of the step plus the
batches that were left out before it.
"""

import json
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor, nn

from seqloom.core.checkpoint.identity import write_identity
from seqloom.core.checkpoint.tensors import load_tensors, save_tensors
from seqloom.core.config import to_yaml
from seqloom.core.errors import CheckpointError, DataError
from seqloom.core.seeds import capture_rng, restore_rng
from seqloom.numerics.place import Clock
from seqloom.train.delayed_scales import recall, remembered
from seqloom.train.optimizers import Optimizers
from seqloom.train.run import Run
from seqloom.train.task import Task

if TYPE_CHECKING:
    from seqloom.train.parallel.spread import Spread

FORMAT = 1
OPTIMIZER, RNG, TASK, STATE, RUN = "optim.safetensors", "rng.safetensors", "task.safetensors", "state.json", "run.yaml"
AMAX = "amax.safetensors"


class StepContents(NamedTuple):
    """What a step folder is written from: the tensors of a training at work, or copies of them.

    Attributes:
        model: a module with `write_folder`.
        facts: plain data for state.json.
        base: identity of the folder that the run began with; None if it began with fresh weights.
        copied: the tensors are copies already, which the next step does not change.
    """

    model: Any
    optimizer: dict[str, Tensor]
    rng: dict[str, Tensor]
    task: dict[str, Tensor]
    amax: dict[str, Tensor]
    facts: dict[str, Any]
    base: dict[str, str] | None
    copied: bool = False

    def write(self, folder: Path, run: Run, task: Task) -> None:
        """Fill a step folder."""
        self.model.write_folder(folder)
        task.write_assets(folder)
        if self.base is not None:
            write_identity(folder, str(run.init_from), self.base)
        save_tensors(folder / OPTIMIZER, self.optimizer)
        save_tensors(folder / RNG, self.rng)
        if self.task:
            save_tensors(folder / TASK, self.task)
        if self.amax:
            save_tensors(folder / AMAX, self.amax)
        (folder / STATE).write_text(json.dumps(self.facts, indent=1) + "\n", encoding="utf-8")
        (folder / RUN).write_text(to_yaml(run), encoding="utf-8")


@dataclass
class TrainState:
    """Everything that changes while training.

    Attributes:
        model: a module with `write_folder` and `read_folder`.
        base: identity of the folder that the run began with; None if it began with fresh weights.
        spread: which pieces of the model this process holds; None if it holds the model.
        clock: tells the layers how far the training is; not saved, since it follows from the step.
        step: steps done.
        units: units (tokens, frames, samples) learned from so far.
        seconds: wall-clock time spent so far, over all sessions.
        left_out: first and last number of each run of batches that were not learned from.
    """

    model: Any
    optimizers: Optimizers
    base: dict[str, str] | None = None
    spread: "Spread | None" = None
    clock: Clock = field(default_factory=Clock)
    step: int = 0
    units: int = 0
    seconds: float = 0.0
    left_out: list[tuple[int, int]] = field(default_factory=list)

    @property
    def position(self) -> int:
        """Number of the next batch."""
        return self.step + sum(last - first + 1 for first, last in self.left_out)

    @cached_property
    def parameters(self) -> list[nn.Parameter]:
        """The parameters that are trained."""
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]

    @property
    def size(self) -> int:
        """How many numbers are trained, over all processes."""
        return self.spread.size if self.spread else sum(parameter.numel() for parameter in self.parameters)

    def gradients(self) -> list[Tensor]:
        """The summed gradients, or this process's pieces of them."""
        if self.spread:
            self.spread.hand_over()
        trained = list(self.spread.pieces.values()) if self.spread else self.parameters
        return [parameter.grad for parameter in trained if parameter.grad is not None]

    def norm(self, gradients: list[Tensor]) -> float:
        """The norm of all gradients together, over all processes."""
        return self.spread.norm() if self.spread else float(nn.utils.get_total_norm(gradients))

    def forget_gradients(self) -> None:
        if self.spread:
            self.spread.forget_gradients()
        else:
            for parameter in self.parameters:
                parameter.grad = None

    def contents(self, task: Task) -> StepContents:
        """What to write down of this moment; the tensors themselves, which the next step changes, or what all processes
        hold together, copied to where it is written."""
        facts = {
            "format": FORMAT,
            "step": self.step,
            "units": self.units,
            "seconds": self.seconds,
            "left_out": self.left_out.copy(),
            "data": task.fingerprint(),
        }
        optimizer, rng, amax = self.optimizers.state(), capture_rng(), remembered(self.model)
        if self.spread is None:
            return StepContents(self.model, optimizer, rng, task.state(), amax, facts, self.base)
        return StepContents(*self.spread.gather(optimizer), rng, task.state(), amax, facts, self.base, copied=True)

    def read(self, folder: Path, task: Task) -> None:
        """Go back to a step folder written by the same run.

        Raises:
            DataError: the data is not what it was.
            CheckpointError: the folder does not fit this model, or is of another version.
        """
        facts = json.loads((folder / STATE).read_text(encoding="utf-8"))
        if facts["format"] != FORMAT:
            raise CheckpointError(f"{folder / STATE}: format {facts['format']!r}, this version reads {FORMAT}")
        if facts["data"] != task.fingerprint():
            raise DataError(
                f"{folder}: the data changed since this run began (fingerprint {facts['data']} then, "
                f"{task.fingerprint()} now); restore it, or train into another folder"
            )
        if self.spread is None:
            self.model.read_folder(folder)
            self.optimizers.load(load_tensors(folder / OPTIMIZER))
        else:
            self.spread.read(folder)
            self.optimizers.load(dict(self.spread.optimizer_pieces(folder, Path(OPTIMIZER).stem)))
        restore_rng(load_tensors(folder / RNG))
        task.load_state(load_tensors(folder / TASK) if (folder / TASK).exists() else {})
        recall(self.model, load_tensors(folder / AMAX) if (folder / AMAX).exists() else {})
        self.step, self.units, self.seconds = facts["step"], facts["units"], facts["seconds"]
        self.left_out = [(first, last) for first, last in facts.get("left_out", [])]
