"""What is refused before it can waste a run: another run's folder, too little memory, silent failures to learn."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from seqloom.core.checkpoint.identity import differing, read_identity
from seqloom.core.config import parse, read_yaml, to_data
from seqloom.core.devices import available_bytes, held_bytes
from seqloom.core.distributed import here
from seqloom.core.errors import CheckpointError, ConfigError, DataError, NumericsError
from seqloom.numerics.place import spoilt_operands
from seqloom.train.run import Run
from seqloom.train.state import RUN
from seqloom.train.task import Task
from seqloom.train.untraced import untraced

FREE_SETTINGS = (
    "init_from",
    "name",
    "task.actors",
    "task.data.tokenizer",
    "train.activation_checkpointing",
    "train.async_save",
    "train.device",
    "train.evaluate_every",
    "train.keep_steps",
    "train.log_every",
    "train.monitor_every",
    "train.not_finite_limit",
    "train.on_not_finite",
    "train.parallel",
    "train.save_every",
    "train.threads",
    "train.trackers",
)
"""Settings that place, watch and store a run, and never decide what it learns while all goes well; they may change on
resume.

The base model and the tokenizer are paths here: what they lead to is compared by content."""


def refuse_other_run(folder: Path, run: Run) -> None:
    """Let a step folder be continued only by the run that wrote it.

    Raises:
        CheckpointError: settings differ; each is named by its dotted path with both values.
        ConfigError: the stored run has settings that this version does not know.
    """
    stored = parse(type(run), read_yaml(folder / RUN), str(folder / RUN))  # settings that came later get their defaults
    there, here = dict(_flat(to_data(stored))), dict(_flat(to_data(run)))
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


def refuse_other_base(folder: Path, run: Run, found: dict[str, str] | None) -> None:
    """Let a run that began with a model folder go on only while that folder is what it was.

    Args:
        folder: the checkpoint to go on from.
        found: identity of the base as it is now.
    Raises:
        CheckpointError: the base is another one; its differing files are named.
    """
    kept = read_identity(folder)
    if kept == found:
        return
    if kept is None or found is None:
        began = "fresh weights" if kept is None else "the weights of a model folder"
        raise CheckpointError(f"{folder.parent.parent}: this run began with {began}; train into another folder")
    raise CheckpointError(
        f"{run.init_from}: not the model that the run in {folder.parent.parent} began with: "
        f"{', '.join(differing(kept, found))}; put it back, or train into another folder"
    )


def refuse_too_large(run: Run, device: torch.device) -> tuple[int, int]:
    """Compare estimated with free memory before anything is allocated.

    Returns:
        bytes needed and bytes available.
    Raises:
        ConfigError: it will not fit; the settings that lower the need are named.
    """
    ranks = here()
    needed = held_bytes(run.model.training_bytes(run) // ranks.size, device)  # spread about evenly
    available = available_bytes(device)
    if device.type == "cpu":
        available //= ranks.local_size
    if needed > available:
        settings = [*run.task.memory_settings, "the sizes under model" if run.init_from is None else "adapter.rank"]
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


def refuse_what_would_not_learn(model: nn.Module, task: Task, batch: list[Any], step: int) -> None:
    """Look at a model and the batch of its next step; leaves no trace in what is learned.

    Raises:
        DataError: the batch has no unit to learn from.
        ConfigError: a part of the loss moves no parameter, or the task refuses the model.
    """
    model.train()
    with untraced(model):
        task.check(model)
        refuse_idle_terms(model, task, batch, step)


def refuse_idle_terms(model: nn.Module, task: Task, batch: list[Any], step: int) -> None:
    """
    Raises:
        DataError: the batch has no unit to learn from.
        ConfigError: parts of the loss have no gradient, or one of zeros, over a whole batch; they are named.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    moving: dict[str, bool] = {}
    units = 0
    for micro in task.smallest(batch):
        loss = task.loss(model, micro)
        units += loss.units
        for name, term in loss.terms.items():
            if not moving.get(name):
                moving[name] = term.requires_grad and any(
                    gradient is not None and bool(gradient.any())
                    for gradient in torch.autograd.grad(term, parameters, retain_graph=True, allow_unused=True)
                )
        if units and all(moving.values()):
            return
    refuse_nothing_to_learn(units, task, step)
    idle = [name for name, moves in moving.items() if not moves]
    raise ConfigError(
        f"parts of the loss that move no parameter: {', '.join(idle)}; set their weight to 0, or free what they train"
    )


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
        spoilt = [name for name, p in model.named_parameters() if p.grad is not None and not _is_finite(p.grad)]
        spoilt = max(here().everyone(spoilt), key=len)
        what = f"the gradient norm is {norm}" + (f", first at '{spoilt[-1]}'" if spoilt else "")
        what += f" ({len(spoilt)} parameters)" if len(spoilt) > 1 else ""
    else:
        what = f"the loss is {loss}, {_source(model, task, batch)}"
    if operands := max(here().everyone(spoilt_operands(model)), key=len):
        more = f" and {len(operands) - 3} more" if len(operands) > 3 else ""
        what += f"; operands with NaN or Inf: {', '.join(operands[:3])}{more}"
    raise NumericsError(
        f"step {step}: {what}; this step was not taken and earlier checkpoints are whole. "
        "A lower learning rate, a longer warm-up or a wider number format may help; train.on_not_finite can leave such "
        "batches out"
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
    with untraced(model):
        for micro in batch:
            if not found or here().size > 1:  # the others are not to wait for this rank
                task.loss(model, micro)
    for handle in handles:
        handle.remove()
    found = max(here().everyone(found), key=len)
    return f"first in the output of module '{found[0]}'" if found else "while every module's output is finite"


def _is_finite(gradient: Tensor) -> bool:
    """Whether all numbers are; of a gradient that is dealt out, those of this process."""
    local: Tensor = gradient.to_local() if hasattr(gradient, "to_local") else gradient
    return bool(local.isfinite().all())


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
