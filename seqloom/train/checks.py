"""What is refused before it can waste a run: another run's folder, too little memory, silent failures to learn."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from seqloom.core.config import read_yaml, to_data
from seqloom.core.devices import available_bytes
from seqloom.core.errors import CheckpointError, ConfigError, DataError, NumericsError
from seqloom.train.run import Run
from seqloom.train.state import RUN
from seqloom.train.task import Task

FREE_SETTINGS = (
    "name",
    "train.activation_checkpointing",
    "train.device",
    "train.evaluate_every",
    "train.keep_steps",
    "train.log_every",
    "train.save_every",
    "train.threads",
    "train.trackers",
)
"""Settings that place, watch and store a run, and never decide what it learns; they may change on resume."""


def refuse_other_run(folder: Path, run: Run) -> None:
    """Let a step folder be continued only by the run that wrote it.

    Raises:
        CheckpointError: settings differ; each is named by its dotted path with both values.
    """
    there, here = dict(_flat(read_yaml(folder / RUN))), dict(_flat(to_data(run)))
    differing = [
        f"  {path}: {there.get(path, '(none)')} there, {here.get(path, '(none)')} here"
        for path in sorted(there.keys() | here.keys())
        if there.get(path) != here.get(path) and not any(f"{path}.".startswith(f"{free}.") for free in FREE_SETTINGS)
    ]
    if differing:
        raise CheckpointError(
            f"{folder.parent.parent}: a different run lives here; train into another folder, or with its settings\n"
            + "\n".join(differing)
        )


def refuse_too_large(run: Run, device: torch.device) -> tuple[int, int]:
    """Compare estimated with free memory before anything is allocated.

    Returns:
        bytes needed and bytes available.
    Raises:
        ConfigError: it will not fit; the settings that lower the need are named.
    """
    needed, available = run.model.training_bytes(run), available_bytes(device)
    if needed > available:
        settings = [*run.task.memory_settings, "the sizes under model"]
        if not run.train.activation_checkpointing:
            settings.append("or set train.activation_checkpointing")
        raise ConfigError(
            f"training needs about {needed / 2**30:.2f} GiB, and {available / 2**30:.2f} GiB are available on "
            f"{device}; lower {', '.join(settings)}"
        )
    return needed, available


def refuse_nothing_to_learn(units: int, task: Task, step: int) -> None:
    """
    Raises:
        DataError: the batch of a step has no unit to learn from.
    """
    if units <= 0:
        raise DataError(f"step {step}: the batch holds no target {task.unit}; is everything masked or padding?")


def refuse_missing_gradients(model: nn.Module) -> None:
    """
    Raises:
        ConfigError: trainable parameters that no loss reaches, by name; a part that is meant to rest is frozen with
            `requires_grad_(False)`.
    """
    idle = [name for name, parameter in model.named_parameters() if parameter.requires_grad and parameter.grad is None]
    if idle:
        more = f" and {len(idle) - 5} more" if len(idle) > 5 else ""
        raise ConfigError(
            f"parameters that the loss does not reach, so they would never learn: {', '.join(idle[:5])}{more}"
        )


def refuse_not_finite(loss: float, norm: float, model: nn.Module, task: Task, batch: list[Any], step: int) -> None:
    """Stop before a step that would spoil weights and optimizer state.

    Raises:
        NumericsError: loss or gradient is not finite; step and module or parameter are named.
    """
    if math.isfinite(loss) and math.isfinite(norm):
        return
    if math.isfinite(loss):
        # Gradients flow from the output back, so of all spoilt parameters the last one was reached first.
        spoilt = [name for name, p in model.named_parameters() if p.grad is not None and not p.grad.isfinite().all()]
        what = f"the gradient norm is {norm}" + (f", first at '{spoilt[-1]}'" if spoilt else "")
        what += f" ({len(spoilt)} parameters)" if len(spoilt) > 1 else ""
    else:
        what = f"the loss is {loss}, {_source(model, task, batch)}"
    raise NumericsError(
        f"step {step}: {what}; this step was not taken and earlier checkpoints are whole. "
        "A lower learning rate, a longer warm-up or a wider number format may help"
    )


@torch.no_grad()
def _source(model: nn.Module, task: Task, batch: list[Any]) -> str:
    """Which module first gives values that are not finite, found by one more forward pass."""
    found: list[str] = []

    def watch(name: str) -> Any:
        def look(module: nn.Module, inputs: Any, output: Any) -> None:
            if not all(tensor.isfinite().all() for tensor in _tensors(output)):
                found.append(name)

        return look

    handles = [module.register_forward_hook(watch(name or "(model)")) for name, module in model.named_modules()]
    for micro in batch:
        if not found:
            task.loss(model, micro)
    for handle in handles:
        handle.remove()
    return f"first in the output of module '{found[0]}'" if found else "while every module's output is finite"


def _tensors(output: Any) -> Iterator[Tensor]:
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, list | tuple):
        for part in output:
            yield from _tensors(part)


def _flat(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """A nested mapping as dotted paths and scalars."""
    if isinstance(value, dict | list):
        for name, part in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _flat(part, f"{path}.{name}" if path else str(name))
    else:
        yield path, value
