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
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from seqloom.core.checkpoint.identity import identity
from seqloom.core.checkpoint.run_folder import RunFolder
from seqloom.core.config import to_yaml
from seqloom.core.devices import pick_device, used_bytes
from seqloom.core.distributed import Ranks, here, placed
from seqloom.core.errors import ConfigError
from seqloom.core.logs import MetricsLog
from seqloom.core.machine import machine_facts
from seqloom.core.seeds import derive
from seqloom.numerics.place import Clock
from seqloom.numerics.precision import Format, apply_precision, describe_precision, resolve_precision
from seqloom.ops import kernels
from seqloom.ops.scaled_mm import refuse_emulation
from seqloom.train.checks import (
    refuse_missing_gradients,
    refuse_not_finite,
    refuse_nothing_to_learn,
    refuse_other_base,
    refuse_other_run,
    refuse_too_large,
    refuse_what_would_not_learn,
)
from seqloom.train.delayed_scales import remember
from seqloom.train.heap import kept_heap
from seqloom.train.interrupt import Interrupted, StopRequest
from seqloom.train.monitors import Monitor
from seqloom.train.observer import Observer, StartReport
from seqloom.train.optimizers import build_optimizers
from seqloom.train.parallel.together import AgreedStop, CommonFolder, NoRecords, Silence, together
from seqloom.train.recovery import Recovery
from seqloom.train.report_page import keep_report
from seqloom.train.representations import Chosen
from seqloom.train.run import Run
from seqloom.train.saver import Saver
from seqloom.train.schedules import factor
from seqloom.train.state import RUN, TrainState
from seqloom.train.task import Task
from seqloom.train.trackers import Records, open_records
from seqloom.train.untraced import untraced

if TYPE_CHECKING:
    from seqloom.train.parallel.spread import Spread


def train(run: Run, folder: str | Path, watch: Observer | None = None) -> RunFolder:
    """Train a run in a folder, or go on with the same run where it stopped.

    Args:
        folder: made if missing; afterwards a model folder of the last step, and the run's checkpoints and log.
        watch: told what happens.
    Raises:
        Interrupted: Ctrl-C, SIGTERM or SIGUSR1; the step in work was finished and saved.
        ConfigError: the settings cannot be honoured on this machine, or the model does not learn in parts.
        DataError: the data cannot be used, changed since the run began, or a batch holds nothing to learn.
        CheckpointError: the folder is in use, not writable, damaged, or another run's (differing settings are named).
        NumericsError: a loss or gradient is not finite; nothing was spoilt.
    """
    watch = watch or Observer()
    run, device = resolve(run)
    with together(run, device) as ranks:
        if ranks.size == 1:
            return _train(run, device, RunFolder(folder), watch, StopRequest())
        return _train(ranks.told(run), device, CommonFolder(folder), watch if ranks.main else Silence(), AgreedStop())


def _train(run: Run, device: torch.device, place: RunFolder, watch: Observer, stop: StopRequest) -> RunFolder:
    """`train` on one of the ranks, or alone."""
    base = run.base()
    with stop, place.lock(), _threads(run.train.threads), kept_heap():
        kept = stop.attempt(lambda: identity(base) if base else None)
        found = stop.attempt(lambda: place.open_latest(watch.on_message))
        if stop.signal:
            raise Interrupted(_last(place), stop.signal)
        if found:
            refuse_other_run(found[1], run)
            refuse_other_base(found[1], run, kept)
        memory = refuse_too_large(run, device)
        with _records(run, place, found[0] if found else 0, watch) as records:
            ready = stop.attempt(lambda: _make_ready(run, device, memory, place, found, kept, watch))
            if ready is None:
                assert stop.signal
                raise Interrupted(_last(place), stop.signal)
            with contextlib.closing(ready[0]):
                _take_steps(run, *ready, place, records, watch, stop)
    return place


def _make_ready(
    run: Run,
    device: torch.device,
    memory: tuple[int, int],
    place: RunFolder,
    found: tuple[int, Path] | None,
    base: dict[str, str] | None,
    watch: Observer,
) -> tuple[Task, TrainState]:
    """Data and model up to the step before the next; can be left anywhere and done again."""
    kernels.begin(device)
    with here().main_first():
        task = run.task.build(run, device, watch.on_prepare)
    clock = Clock(run.seed, here().batch.index, run.precision.switch_step(run.train.steps), run.precision.switch)
    model, formats = _build(run, device, clock)
    precision = describe_precision(model)
    spread = _spread(run, model, task, device, memory, watch)
    if spread is not None and run.train.async_save:
        raise ConfigError(
            "train.async_save: several processes write a checkpoint together, and wait for it; set it false"
        )
    state = TrainState(model, build_optimizers(model, run.train.optimizer, spread), base, spread, clock)
    if found:
        state.read(found[1], task)
    else:
        place.write_top(RUN, to_yaml(run))
    clock.begin(state.step)
    if state.step < run.train.steps and spread is None:
        refuse_what_would_not_learn(state.model, task, task.next_batch(state.model, state.position), state.step)
    data, adapter = task.report(), run.adapter_report()
    place.write_top("data.json", json.dumps(data, indent=1) + "\n")
    place.write_top("formats.json", json.dumps(formats, indent=1) + "\n")
    if adapter:
        place.write_top("adapter.json", json.dumps(adapter, indent=1) + "\n")
    machine = {"parameters": state.size, **machine_facts(device)}
    place.write_top("machine.json", json.dumps(machine, indent=1) + "\n")
    facts = (state.size, state.step, task.unit, task.shown, task.summary(), formats, *memory, adapter, precision)
    watch.on_start(StartReport(run, str(device), *facts))
    return task, state


def _take_steps(
    run: Run,
    task: Task,
    state: TrainState,
    place: RunFolder,
    records: Records,
    watch: Observer,
    stop: StopRequest,
) -> None:
    """Step, log, evaluate and save until the last step is done or a signal asks to stop.

    An evaluation that a signal cut short is made when the run goes on, before anything else, so that it leaves no gap.
    """
    settings, first, started = run.train, state.step, time.perf_counter() - state.seconds
    monitor = Monitor(state.model, settings.monitor_every if state.spread is None else None, watch.on_message)

    def saved(step: int) -> None:
        if here().main:
            keep_report(place.path, watch.on_message)
        watch.on_save(step, place.path)

    def save() -> None:
        state.seconds = time.perf_counter() - started
        saver.save(state.contents(task))

    def evaluate() -> bool:
        """Measure and log if that is due; False if a signal came first."""
        if state.step == 0 or not _due(state.step, settings.evaluate_every, settings.steps):
            return True
        found = stop.attempt(lambda: _evaluate(task, state))
        if found is None:
            return False
        metrics, sample = found
        if sample:
            records.note("sample", state.step, sample)
        records.add("valid", metrics)
        watch.on_eval(metrics)
        return True

    state.model.train()
    chosen = Chosen()
    stop.agree()
    measured = here().told(records.holds("valid", state.step)) or evaluate()
    with Saver(place, run, task, state.step, saved) as saver:
        recovery = Recovery(run, task, state, place, saver, records, watch)
        while state.step < settings.steps and not stop.signal:
            saver.check()
            metrics = recovery.attempt(lambda: _step(run, task, state, monitor, chosen, first=state.step == first))
            stop.agree()
            if metrics is None:
                monitor.forget()
                continue
            state.seconds = metrics["seconds"] = time.perf_counter() - started
            metrics["memory_bytes"] = used_bytes(next(state.model.parameters()).device)
            watch.on_step(metrics)
            if state.step == 1 or _due(state.step, settings.log_every, settings.steps):
                records.add("train", metrics)
                if chosen.events:
                    records.add("representations", {"step": state.step, **chosen.events})
            if measures := monitor.take():
                records.add("monitor", measures)
            measured = evaluate()
            if _due(state.step, settings.save_every, settings.steps):
                save()
        if stop.signal and saver.step != state.step:
            save()
    if stop.signal and not (measured and state.step == settings.steps):
        raise Interrupted(state.step, stop.signal)


def _step(run: Run, task: Task, state: TrainState, monitor: Monitor, chosen: Chosen, first: bool) -> dict[str, float]:
    """One optimizer step over the micro-batches of the next global batch; leaves no gradients behind."""
    began, step, position, model = time.perf_counter(), state.step, state.position, state.model
    ranks = here()
    if ranks.batch.index:  # what is drawn for other tokens must differ; the first rank goes on as if it were alone
        torch.manual_seed(derive(run.seed, "rank", ranks.batch.index, position))
    batch = task.next_batch(model, position)
    total, units, sums = torch.zeros(()), 0, dict[str, Tensor]()
    for number, micro in enumerate(batch):
        state.clock.begin(step, number)
        with monitor.forward(step + 1):
            part = task.loss(model, micro)
        part.total.backward()
        total = total + part.total.detach()
        units += part.units
        for name, value in part.metrics.items():
            sums[name] = sums.get(name, torch.zeros(())) + value.detach()
    loss, count, *values = ranks.batch.total([float(total), units, *map(float, sums.values())])
    units = int(count)
    refuse_nothing_to_learn(units, task, step)
    if first:
        refuse_missing_gradients(model)

    gradients = state.gradients()
    norm = state.norm(gradients) / units
    objective = loss / units
    refuse_not_finite(objective, norm, model, task, batch, step)
    remember(model)
    chosen.read(model)
    clip = run.train.clip_norm
    rate = factor(step, run.train.steps, run.train.schedule)
    with monitor.update(units):
        torch._foreach_mul_(gradients, (clip / norm if clip is not None and norm > clip else 1.0) / units)
        state.optimizers.step(rate)
    state.forget_gradients()
    updates = task.after_step(model, position) | chosen.shares()
    state.clock.begin(step + 1)
    state.step, state.units = step + 1, state.units + units
    return {
        "step": state.step,
        "loss": objective,
        "objective": objective,
        **{name: value / units for name, value in zip(sums, values, strict=True)},
        **updates,
        "lr": rate * run.train.optimizer.lr,
        "grad_norm": norm,
        task.unit: state.units,
        f"{task.unit}_per_second": units / (time.perf_counter() - began),
    }


@torch.no_grad()
def _evaluate(task: Task, state: TrainState) -> tuple[dict[str, float], dict[str, str] | None]:
    """Measure without leaving a trace: training draws the same random numbers whether it was watched or not."""
    with untraced(state.model):
        state.model.eval()
        metrics = {"step": state.step, **task.evaluate(state.model, state.step)}
        return metrics, task.sample(state.model) if state.spread is None else None


def resolve(run: Run) -> tuple[Run, torch.device]:
    """The device, and the run with its number format decided for it.

    Raises:
        ConfigError: there is no such device, or it lacks the units that `precision.hardware` requires.
    """
    device = pick_device(run.train.device)
    if run.precision.hardware == "require":
        refuse_emulation(device, run.precision)
    return replace(run, precision=resolve_precision(run.precision, device)), device


def _build(run: Run, device: torch.device, clock: Clock) -> tuple[Any, dict[str, Format]]:
    """The whole model as training begins with it in the run's number formats; seeds the generators."""
    torch.manual_seed(derive(run.seed, "model"))
    model: Any = run.build_model()
    if here().size == 1:
        model = model.to(device)
    formats = apply_precision(model, run.precision, clock)
    if run.train.activation_checkpointing:
        if not hasattr(model, "checkpoint_layers"):
            raise ConfigError(f"train.activation_checkpointing: models of '{run.system}' cannot recompute their layers")
        model.checkpoint_layers = True
    return model, formats


def _spread(
    run: Run, model: Any, task: Task, device: torch.device, memory: tuple[int, int], watch: Observer
) -> "Spread | None":
    """Check a whole model on the main rank, then leave it with this rank's pieces; nothing where there is one rank."""
    ranks = here()
    if ranks.size == 1:
        return None
    from seqloom.train.parallel.spread import Spread

    if run.train.monitor_every is not None:
        watch.on_message("train.monitor_every: the inside of a model is not measured over several processes yet")
    needed, available = memory
    if needed * ranks.size > available:
        watch.on_message("too large for one device: not checked beforehand whether every part of the loss learns")
    elif ranks.main:
        with placed(Ranks()):
            refuse_what_would_not_learn(model.to(device), task, task.next_batch(model, 0), 0)
    return Spread(model.cpu(), ranks, device)


def _records(run: Run, place: RunFolder, first_step: int, watch: Observer) -> Records:
    """Where the numbers of the run go; only the main rank writes them."""
    if here().main:
        return open_records(run, place.path, first_step, watch.on_message)
    return NoRecords(MetricsLog(place.metrics_path))


def _last(place: RunFolder) -> int:
    """The newest step on the disk, 0 if there is none."""
    return max(place.steps(), default=0)


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
