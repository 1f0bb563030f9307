"""The seam between what is learned and how we step.

A task knows batches, loss and evaluation; the loop knows accumulation, clipping, saving and resuming. Neither knows
the other's business, and models are plain modules that know neither.

The loss is a **sum and a count** of its units. The loop divides the sum of all micro-batches by the count of all
micro-batches once per step, so accumulation, packing and padding never change the gradient.
"""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

from torch import Tensor, nn


class Loss(NamedTuple):
    """What one micro-batch contributes to a step.

    Attributes:
        total: differentiable scalar, the loss summed over the units of this micro-batch.
        units: how many units (tokens, frames, samples) were summed.
        metrics: further **sums** to report, each divided by the step's units before it is logged; "loss" among them
            stands in the log for the part that users know, and the mean total stays beside it as "objective".
        terms: the differentiable, weighted parts that add up to the total, by name, where there are several; each must
            move the model, which is checked before the first step. A part with nothing to learn from here is absent.
    """

    total: Tensor
    units: int
    metrics: dict[str, Tensor]
    terms: Mapping[str, Tensor] = MappingProxyType({})


class Task(Protocol):
    """One thing to learn, with its data."""

    unit: str
    """What the loss counts, in the plural, for display: "tokens", "frames", "episodes"."""

    shown: Mapping[str, str]
    """Metrics to show beside the loss while training, by name, and the words to follow their numbers."""

    def check(self, model: nn.Module) -> None:
        """Refuse a model that would silently learn something else than this task means; once, before the first step.

        Raises:
            ConfigError: what is wrong with it, and where.
        """
        ...

    def next_batch(self, model: nn.Module, step: int) -> list[Any]:
        """The micro-batches of a step (counted from 0, batches left out included): a pure function of seed, step and
        `state`. Asked again for the same step, it gives the same batch."""
        ...

    def smallest(self, batch: list[Any]) -> list[Any]:
        """The same batch in micro-batches as small as they can be, for a look that needs little memory."""
        ...

    def loss(self, model: nn.Module, micro: Any) -> Loss:
        """Forward pass and loss of one micro-batch."""
        ...

    def after_step(self, model: nn.Module, step: int) -> dict[str, float]:
        """Updates outside the gradient (router balance, target networks), after the optimizer took the step of
        `next_batch(model, step)`; returns metrics."""
        ...

    def evaluate(self, model: nn.Module, step: int) -> dict[str, float]:
        """Measures on held-out data after `step` steps, called in evaluation mode without gradients; `loss` must be
        among them."""
        ...

    def sample(self, model: nn.Module) -> dict[str, str] | None:
        """What the model makes of a held-out beginning, for people to read: a "prompt" and the "text" it goes on with;
        called like `evaluate`. None where there is nothing to read."""
        ...

    def report(self) -> dict[str, Any]:
        """What a user wants to read about the data before step 1, as plain data; stored as `data.json`."""
        ...

    def summary(self) -> list[str]:
        """The report, or what matters most of it, as lines for a terminal."""
        ...

    def write_assets(self, folder: Path) -> None:
        """Write what a model folder needs beside the weights: tokenizer, generation settings, chat template."""
        ...

    def fingerprint(self) -> str:
        """Digest of everything that decides the batches; a resumed run must show the same one."""
        ...

    def state(self) -> dict[str, Tensor]:
        """Copies of what batches so far left behind and later ones begin with, such as environments in the middle of
        an episode; saved with every step. Empty where a batch depends on seed and step alone."""
        ...

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Go back to where `state` was taken, after the same number of steps of the same run.

        Raises:
            CheckpointError: it is not a state of this task.
        """
        ...

    def close(self) -> None:
        """Let go of processes and files; the task is not asked again."""
        ...
