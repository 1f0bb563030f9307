"""What a training carries from step to step, and its way to disk and back, bit for bit.

A step folder holds the public model folder and beside it:

    optim.safetensors   optimizer state by parameter name        rng.safetensors   torch's global generators
    state.json          position, units seen, seconds spent, digest of the data     run.yaml   the resolved run

No loader state exists: the batch of a step is a pure function of seed and step.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from seqloom.core.checkpoint.tensors import load_tensors, save_tensors
from seqloom.core.config import to_yaml
from seqloom.core.errors import CheckpointError, DataError
from seqloom.core.seeds import capture_rng, restore_rng
from seqloom.train.optimizers import Optimizers
from seqloom.train.run import Run
from seqloom.train.task import Task

FORMAT = 1
OPTIMIZER, RNG, STATE, RUN = "optim.safetensors", "rng.safetensors", "state.json", "run.yaml"


@dataclass
class TrainState:
    """Everything that changes while training.

    Attributes:
        model: a module with `write_folder` and `read_folder`.
        step: steps done.
        units: units (tokens, frames, samples) learned from so far.
        seconds: wall-clock time spent so far, over all sessions.
    """

    model: Any
    optimizers: Optimizers
    step: int = 0
    units: int = 0
    seconds: float = 0.0

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The parameters that are trained."""
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]

    def write(self, folder: Path, run: Run, task: Task) -> None:
        """Fill a step folder."""
        self.model.write_folder(folder)
        task.write_assets(folder)
        save_tensors(folder / OPTIMIZER, self.optimizers.state())
        save_tensors(folder / RNG, capture_rng())
        facts = {
            "format": FORMAT,
            "step": self.step,
            "units": self.units,
            "seconds": self.seconds,
            "data": task.fingerprint(),
        }
        (folder / STATE).write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
        (folder / RUN).write_text(to_yaml(run), encoding="utf-8")

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
        self.model.read_folder(folder)
        self.optimizers.load(load_tensors(folder / OPTIMIZER))
        restore_rng(load_tensors(folder / RNG))
        self.step, self.units, self.seconds = facts["step"], facts["units"], facts["seconds"]
