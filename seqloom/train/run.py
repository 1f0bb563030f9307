"""A run: everything that decides a training, as one value.

Recipes return one, `run.yaml` stores one, and training a stored one again is the same run. Each system narrows
`model` and `task` to its own config classes, so a file for it is checked field by field.

A run begins with fresh weights, or with those of a model folder (`init_from`); which folder it was is kept by content,
so that a base that changed is noticed and one that only moved is not.

What the loop asks of the two narrowed fields:

    run.model.build() -> nn.Module          fresh weights from torch's global generator, which the loop has seeded
    run.task.build(run, device, progress) -> Task    prepares or opens the data; may raise DataError
    run.model.training_bytes(run) -> int    estimate of peak memory, asked before the model is built
    run.task.memory_settings                dotted names of the settings that lower it, for the refusal

and of the model: `write_folder(path)` writes config.json and weights in the public layout, `read_folder(path)` loads
the weights back bit for bit.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Self

from seqloom.core.config import Ge, config
from seqloom.core.errors import ConfigError
from seqloom.numerics.precision import PrecisionConfig
from seqloom.train.config import ParallelConfig, TrainConfig

if TYPE_CHECKING:
    from torch import nn

TO_BE_NAMED = ""
"""`init_from` of a recipe that needs a folder and cannot know which."""


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
    init_from: str | None = None
    """Model folder, or run folder, whose weights training begins with; None begins with fresh ones."""

    def build_model(self) -> "nn.Module":
        """The model as training begins with it: what is random comes from torch's global generator."""
        if self.init_from is not None:
            raise ConfigError(f"init_from: models of '{self.system}' cannot begin with the weights of a folder")
        model: nn.Module = self.model.build()
        return model

    def starting_from(self, folder: str) -> Self:
        """The same run on the shapes, weights and tokenizer of a model folder.

        Raises:
            ConfigError: models of this system cannot begin with a folder.
            CheckpointError: it is not a model folder.
        """
        raise ConfigError(f"--model: models of '{self.system}' cannot begin with the weights of a folder")

    def base(self) -> Path | None:
        """The folder whose weights training begins with, of a run folder its newest checkpoint; None for fresh ones.

        Raises:
            ConfigError: it is not named yet, or is not there.
        """
        if self.init_from is None:
            return None
        if self.init_from == TO_BE_NAMED:
            raise ConfigError(
                f"'{self.name}' begins with a model folder, so name one: "
                f"seqloom train {self.name} --model FOLDER --data FILE"
            )
        folder = Path(self.init_from)
        if not folder.is_dir():
            raise ConfigError(f"init_from: there is no folder {folder}; name the model folder with --model FOLDER")
        latest = folder / "latest"
        return latest.resolve() if latest.is_symlink() else folder

    def refuse_indivisible(self, parallel: ParallelConfig) -> None:
        """
        Args:
            parallel: with `data` decided.
        Raises:
            ConfigError: this run cannot be divided so; every size that stands in the way is named.
        """
        if not parallel.single:
            raise ConfigError(f"trainings of '{self.system}' run in one process; start it without torchrun")

    def adapter_report(self) -> dict[str, Any]:
        """What adapters train in place of the model's own weights, as plain data; empty without adapters."""
        return {}
