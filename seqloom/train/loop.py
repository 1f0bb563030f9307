"""The training loop: batches and losses come from a task, everything else about a step is here in plain sight.

    accumulate  G = Σ over micro-batches of ∇ total         the loss is a sum over units (tokens, frames, samples)
    divide      g = G / Σ units                             once per step, so micro-batches never change it
    clip        g ← g · min(1, clip_norm / ‖g‖)
    refuse      a loss or norm that is not finite ends the run before weights and optimizer state are touched
    step        θ ← optimizer(θ, g, factor(step) · lr)

A run is a pure function of its settings: stopped anywhere and started again, it goes on bit for bit.
"""

import contextlib
import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from seqloom.core.checkpoint.run_folder import RunFolder
from seqloom.core.config import to_yaml
from seqloom.core.devices import pick_device, used_bytes
from seqloom.core.errors import ConfigError
from seqloom.core.seeds import capture_rng, derive, restore_rng
from seqloom.numerics.precision import Format, apply_precision, native_format
from seqloom.train.checks import (
    refuse_missing_gradients,
    refuse_not_finite,
    refuse_nothing_to_learn,
    refuse_other_run,
    refuse_too_large,
)
from seqloom.train.interrupt import Interrupted, StopRequest
from seqloom.train.observer import Observer, StartReport
from seqloom.train.optimizers import build_optimizers
from seqloom.train.run import Run
from seqloom.train.schedules import factor
from seqloom.train.state import RUN, TrainState
from seqloom.train.task import Task
from seqloom.train.trackers import Records, open_records


def train(run: Run, folder: str | Path, watch: Observer | None = None) -> RunFolder:
    """Train a run in a folder, or go on with the same run where it stopped.

    Args:
        folder: made if missing; afterwards a model folder of the last step, and the run's checkpoints and log.
        watch: told what happens.
    Raises:
        Interrupted: Ctrl-C or SIGTERM; the step in work was finished and saved.
        ConfigError: the settings cannot be honoured on this machine, or the model does not learn in parts.
        DataError: the data cannot be used, changed since the run began, or a batch holds nothing to learn.
        CheckpointError: the folder is in use, not writable, damaged, or another run's (differing settings are named).
        NumericsError: a loss or gradient is not finite; nothing was spoilt.
    """
    watch = watch or Observer()
    run, device = resolve(run)
    place = RunFolder(folder)
    with place.lock(), _threads(run.train.threads):
        found = place.open_latest(watch.on_message)
        if found:
            refuse_other_run(found[1], run)
        needed, available = refuse_too_large(run, device)
        with open_records(run, place.path, found[0] if found else 0, watch.on_message) as records:
            task = run.task.build(run, device, watch.on_prepare)
            state, formats = _build(run, device)
            if found:
                state.read(found[1], task)
            else:
                place.write_top(RUN, to_yaml(run))
            data = task.report()
            place.write_top("data.json", json.dumps(data, indent=1) + "\n")
            place.write_top("formats.json", json.dumps(formats, indent=1) + "\n")
            size = sum(parameter.numel() for parameter in state.parameters)
            watch.on_start(StartReport(run, str(device), size, state.step, task.unit, data, formats, needed, available))
            _take_steps(run, task, state, place, records, watch)
    return place


def _take_steps(run: Run, task: Task, state: TrainState, place: RunFolder, records: Records, watch: Observer) -> None:
    """Step, log, evaluate and save until the last step is done or a signal asks to stop."""
    settings, first, started = run.train, state.step, time.perf_counter() - state.seconds
    state.model.train()
    with StopRequest() as stop:
        while state.step < settings.steps:
            metrics = _step(run, task, state, first=state.step == first)
            state.seconds = metrics["seconds"] = time.perf_counter() - started
            metrics["memory_bytes"] = used_bytes(next(state.model.parameters()).device)
            watch.on_step(metrics)
            if state.step == 1 or _due(state.step, settings.log_every, settings.steps):
                records.add("train", metrics)
            if _due(state.step, settings.evaluate_every, settings.steps):
                metrics = _evaluate(task, state)
                records.add("valid", metrics)
                watch.on_eval(metrics)
            if stop.signal or _due(state.step, settings.save_every, settings.steps):
                state.seconds = time.perf_counter() - started
                place.save(state.step, lambda path: state.write(path, run, task), settings.keep_steps)
                watch.on_save(state.step, place.path)
            if stop.signal and state.step < settings.steps:
                raise Interrupted(state.step, stop.signal)


def _step(run: Run, task: Task, state: TrainState, first: bool) -> dict[str, float]:
    """One optimizer step over the micro-batches of the next global batch; leaves no gradients behind."""
    began, step, model = time.perf_counter(), state.step, state.model
    batch = task.next_batch(model, step)
    total, units, sums = torch.zeros(()), 0, dict[str, Tensor]()
    for micro in batch:
        part = task.loss(model, micro)
        part.total.backward()
        total = total + part.total.detach()
        units += part.units
        for name, value in part.metrics.items():
            sums[name] = sums.get(name, torch.zeros(())) + value.detach()
    refuse_nothing_to_learn(units, task, step)
    if first:
        refuse_missing_gradients(model)

    gradients = [parameter.grad for parameter in state.parameters if parameter.grad is not None]
    norm = float(nn.utils.get_total_norm(gradients)) / units
    objective = float(total) / units
    refuse_not_finite(objective, norm, model, task, batch, step)
    clip = run.train.clip_norm
    torch._foreach_mul_(gradients, (clip / norm if clip is not None and norm > clip else 1.0) / units)

    rate = factor(step, run.train.steps, run.train.schedule)
    state.optimizers.step(rate)
    model.zero_grad(set_to_none=True)
    updates = task.after_step(model, step)
    state.step, state.units = step + 1, state.units + units
    return {
        "step": state.step,
        "loss": objective,
        "objective": objective,
        **{name: float(value) / units for name, value in sums.items()},
        **updates,
        "lr": rate * run.train.optimizer.lr,
        "grad_norm": norm,
        task.unit: state.units,
        f"{task.unit}_per_second": units / (time.perf_counter() - began),
    }


@torch.no_grad()
def _evaluate(task: Task, state: TrainState) -> dict[str, float]:
    """Measure without leaving a trace: training draws the same random numbers whether it was watched or not."""
    before = capture_rng()
    state.model.eval()
    metrics = task.evaluate(state.model, state.step)
    state.model.train()
    restore_rng(before)
    return {"step": state.step, **metrics}


def resolve(run: Run) -> tuple[Run, torch.device]:
    """The device, and the run with its number format decided for it."""
    device = pick_device(run.train.device)
    if run.precision.activations == "auto":
        run = replace(run, precision=replace(run.precision, activations=native_format(device)))
    return run, device


def _build(run: Run, device: torch.device) -> tuple[TrainState, dict[str, Format]]:
    """A fresh model in the run's number formats, with its optimizers; seeds the global generators."""
    torch.manual_seed(derive(run.seed, "model"))
    model = run.model.build().to(device)
    formats = apply_precision(model, run.precision)
    if run.train.activation_checkpointing:
        if not hasattr(model, "checkpoint_layers"):
            raise ConfigError(f"train.activation_checkpointing: models of '{run.system}' cannot recompute their layers")
        model.checkpoint_layers = True
    return TrainState(model, build_optimizers(model, run.train.optimizer)), formats


def _due(step: int, every: int, steps: int) -> bool:
    return step % every == 0 or step == steps


@contextlib.contextmanager
def _threads(wanted: int | None) -> Iterator[None]:
    """Compute with this many CPU threads inside the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(wanted or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
