"""A run: everything that decides a training, as one value.

Recipes return one, `run.yaml` stores one, and training a stored one again is the same run. Each system narrows
`model` and `task` to its own config classes, so a file for it is checked field by field.

What the loop asks of the two narrowed fields:

    run.model.build() -> nn.Module          fresh weights from torch's global generator, which the loop has seeded
    run.task.build(run, device, progress) -> Task    prepares or opens the data; may raise DataError
    run.model.training_bytes(run) -> int    estimate of peak memory, asked before the model is built
    run.task.memory_settings                dotted names of the settings that lower it, for the refusal

and of the model: `write_folder(path)` writes config.json and weights in the public layout, `read_folder(path)` loads
the weights back bit for bit.
"""

from typing import Annotated, Any

from seqloom.core.config import Ge, config
from seqloom.numerics.precision import PrecisionConfig
from seqloom.train.config import TrainConfig


@config
class Run:
    """What to train, on what, how, in which number formats, from which seed."""

    system: str
    """The room that owns this run, for instance "hybrid_lm"."""
    name: str
    """The recipe this run came from; shown, never interpreted."""
    model: Any
    task: Any
    train: TrainConfig
    precision: PrecisionConfig = PrecisionConfig()
    seed: Annotated[int, Ge(0)] = 0
