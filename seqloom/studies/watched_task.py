"""The text task of a hybrid language model, whose training also reports how large the outputs of its layers are."""

from collections import defaultdict
from statistics import mean
from typing import TYPE_CHECKING

from seqloom.core.config import config
from seqloom.core.progress import Progress
from seqloom.systems.hybrid_lm.config import Run, TextTaskConfig

if TYPE_CHECKING:
    import torch

    from seqloom.systems.hybrid_lm.task import TextTask

PREFIX = "output_norm."
"""What the names of the measures begin with; the name of the linear layer follows, such as q_proj."""

LOOKS = 50
"""Measurements in a run."""


@config
class WatchedTaskConfig(TextTaskConfig):
    """Next-token prediction, measured inside."""

    def build(self, run: Run, device: "torch.device", progress: Progress | None = None) -> "TextTask":
        from torch import nn

        from seqloom.systems.hybrid_lm.task import Micro, TextTask
        from seqloom.train.monitors import Monitor
        from seqloom.train.task import Loss

        every = max(1, run.train.steps // LOOKS)

        class WatchedTask(TextTask):
            monitor: Monitor | None = None
            step = 0

            def next_batch(self, model: nn.Module, step: int) -> list[Micro]:
                self.monitor, self.step = self.monitor or Monitor(model, every, lambda text: None), step + 1
                return super().next_batch(model, step)

            def loss(self, model: nn.Module, micro: Micro) -> Loss:
                assert self.monitor is not None
                with self.monitor.forward(self.step):
                    return super().loss(model, micro)

            def after_step(self, model: nn.Module, step: int) -> dict[str, float]:
                assert self.monitor is not None
                return super().after_step(model, step) | by_layer_kind(self.monitor.take() or {})

        return WatchedTask(run, device, progress)


def by_layer_kind(measures: dict[str, float]) -> dict[str, float]:
    """The norms of all linear layers' outputs, as the mean over layers of a name."""
    found: dict[str, list[float]] = defaultdict(list)
    for name, value in measures.items():
        layer, _, measure = name.rpartition(".")
        if measure == "output_norm" and ".mixer." in layer:
            found[PREFIX + layer.rpartition(".")[2]].append(value)
    return {name: mean(values) for name, values in found.items()}
