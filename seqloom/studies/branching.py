"""The branch protocol: courses of training that part from one checkpoint, on the same batches.

    trunk     the reference, trained from step 0 to its end; its checkpoint after A steps is kept
    branch    from that checkpoint (weights, optimizer state, random numbers), with settings of its own, to the same end
    null      a branch with the trunk's own settings whose matrices were moved by 0.1 %

Runs from scratch part by nearly one per cent for no reason but chaos; branches of equal settings part by about 0.01 %,
so a gap of a tenth of a per cent can be told from chance. The null branches say how far chance goes, and no gap within
twice that counts as shown. Every course is a run of the public loop: a branch is a run folder that begins with a copy
of the trunk's checkpoint.
Paper: "Pretraining Large Language Models with NVFP4" (arXiv 2509.25149), the way of its ablations.
"""

import hashlib
import json
import re
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from statistics import mean, median
from typing import Any

from seqloom.core.checkpoint import manifest
from seqloom.core.checkpoint.run_folder import RunFolder
from seqloom.core.config import to_data, to_yaml
from seqloom.core.errors import CheckpointError, ConfigError, NumericsError
from seqloom.core.logs import read_metrics
from seqloom.studies.courses import NULLS, REFERENCE, Branched, Course, Plan
from seqloom.studies.measured import measured
from seqloom.train.interrupt import Interrupted
from seqloom.train.observer import Observer
from seqloom.train.run import Run

MOVED = 1e-3
"""By which share of themselves the weights of a null branch are moved."""


def train_branches(plan: Plan, folder: Path, watch: Observer) -> Branched:
    """Train what is missing of trunks, null branches and branches, as far as the time allows.

    Raises:
        ConfigError, DataError, CheckpointError: the trunk cannot be trained or branched from here.
        Interrupted: finished courses are stored, and the same command goes on.
    """
    found = Branched(plan=plan)
    began, spent = time.monotonic(), 0.0
    total, number = plan.seeds * (1 + len(found.names)), 0
    for seed in range(plan.seeds):  # outermost: what was cut short then has all branches once
        trunk = trunk_of(plan, seed, folder)
        for name in (REFERENCE, *found.names):
            number += 1
            started = time.monotonic()
            late = plan.minutes is not None and number > 1 and started - began + spent > 60 * plan.minutes
            progress = _Progress(watch, f"{total} courses of training", number - 1, total)
            try:
                course, machine = _course(trunk, name, seed, folder, progress, late)
            except _OutOfTimeError:
                continue
            if progress.stepped and name != REFERENCE:
                spent = max(spent, time.monotonic() - started)
                watch.on_message(f"{number}/{total}  {name}, seed {seed}: {course.ended or f'{course.late:.4f} nats'}")
            found.courses[name, seed] = course
            found.machines.add(machine)
    return found


@dataclass(frozen=True, kw_only=True)
class Trunk:
    """The reference of one seed, and where it is kept.

    Attributes:
        run: with everything decided that "auto" leaves open.
    """

    plan: Plan
    run: Run
    place: RunFolder

    @property
    def at_branch(self) -> Path:
        """The checkpoint that all branches begin with."""
        return self.place.folder(self.plan.branch_at)

    @property
    def at_end(self) -> Path:
        return self.place.folder(self.run.train.steps)

    def train(self, watch: Observer) -> None:
        """Train to the end what is not there yet."""
        from seqloom.train.loop import train

        if not {self.plan.branch_at, self.run.train.steps} <= set(self.place.steps()):
            train(self.run, self.place.path, watch)


def trunk_of(plan: Plan, seed: int, folder: Path) -> Trunk:
    """The trunk of a seed; nothing is trained yet. Trunks of other settings have other folders."""
    run = _seeded(plan.trunk, plan, seed)
    digest = hashlib.blake2b(json.dumps(to_data(run)).encode(), digest_size=4).hexdigest()
    return Trunk(plan=plan, run=run, place=RunFolder(folder / "trunks" / f"{plan.scale}-{seed}-{digest}"))


def fork(source: Path, step: int, run: Run, into: Path, change: Callable[[Path], None] = lambda folder: None) -> None:
    """Make a run folder that goes on from another run's checkpoint with settings of its own.

    Args:
        source: the checkpoint's folder.
        change: told the new checkpoint's folder before it is sealed.
    Raises:
        CheckpointError: the source is damaged, or the new folder cannot be written.
    """
    from seqloom.train.state import RUN

    if problems := manifest.verify(source):
        raise CheckpointError(f"{source}: {', '.join(problems)}")

    def fill(folder: Path) -> None:
        for path in source.iterdir():
            if path.name not in (manifest.NAME, RUN):
                shutil.copy(path, folder / path.name)
        (folder / RUN).write_text(to_yaml(run), encoding="utf-8")
        change(folder)

    place = RunFolder(into)
    with place.lock():
        place.save(step, fill, keep=2)


class _OutOfTimeError(Exception):
    """A course is not stored, and there is no time to train it."""


def _course(trunk: Trunk, name: str, seed: int, folder: Path, progress: "_Progress", late: bool) -> tuple[Course, str]:
    """The course of this name, trained if it was not stored and it is not too late for that."""
    plan = trunk.plan
    run = _seeded(plan.branches[name], plan, seed) if name in plan.branches else trunk.run
    settings: dict[str, Any] = {"run": to_data(run), "trunk": trunk.place.path.name, "branch_at": plan.branch_at}
    if name in NULLS:
        settings["moved"] = [MOVED, NULLS.index(name)]

    def made() -> dict[str, Any]:
        if late:
            raise _OutOfTimeError
        trunk.train(progress)
        if name == REFERENCE:
            return asdict(_read(trunk.place, plan.branch_at))
        return asdict(_branch(trunk, run, NULLS.index(name) if name in NULLS else None, progress))

    path = folder / "courses" / f"{plan.scale}-{re.sub(r'[^A-Za-z0-9]+', '_', name)}-{seed}.json"
    stored, machine = measured(path, settings, made)
    return Course(**stored), machine


def _branch(trunk: Trunk, run: Run, draw: int | None, watch: Observer) -> Course:
    """Train on from the branch point in a folder that goes when it is done; weights moved for a null branch."""
    from seqloom.train.loop import train

    with tempfile.TemporaryDirectory(dir=trunk.place.path.parent, prefix=".branch-") as room:
        into = Path(room, "run")

        def move(folder: Path) -> None:
            if draw is not None:
                _move_weights(folder, draw)

        fork(trunk.at_branch, trunk.plan.branch_at, run, into, move)
        ended = ""
        try:
            train(run, into, watch)
        except Interrupted as stop:
            stop.args = ("interrupted; finished courses are stored, and the same command goes on with the next one",)
            raise
        except NumericsError as error:
            ended = str(error).split(";")[0]
        return replace(_read(RunFolder(into), trunk.plan.branch_at), ended=ended)


def _move_weights(folder: Path, draw: int) -> None:
    """Multiply every matrix by 1 + MOVED · N(0, 1)."""
    import torch

    from seqloom.core.checkpoint.tensors import load_tensors, save_tensors
    from seqloom.core.seeds import generator

    for path in folder.glob("model*.safetensors"):
        tensors = load_tensors(path)
        for name, tensor in tensors.items():
            if tensor.ndim > 1 and tensor.is_floating_point():
                noise = torch.randn(tensor.shape, generator=generator(draw, "null", name))
                tensors[name] = (tensor * (1 + MOVED * noise)).to(tensor.dtype)
        save_tensors(path, tensors)


def _read(place: RunFolder, branch_at: int) -> Course:
    """What a run logged after the branch point."""
    records = [record for record in read_metrics(place.metrics_path) if record["step"] > branch_at]
    steps = [record for record in records if record["kind"] == "train"]
    seconds = [later["seconds"] - earlier["seconds"] for earlier, later in pairwise(steps)]
    valid = [record for record in records if record["kind"] == "valid"]
    return Course(
        losses=[float(f"{record['loss']:.7g}") for record in steps],
        valid={name: value for name, value in valid[-1].items() if isinstance(value, float)} if valid else {},
        step_seconds=float(f"{median(seconds or [0.0]):.4g}"),
        shares={
            name: float(f"{mean(record[name] for record in steps):.6g}")
            for name in (steps[-1] if steps else ())
            if name.endswith("_share")
        },
    )


def _seeded(run: Run, plan: Plan, seed: int) -> Run:
    """A run of this seed as a course trains it on this machine: it logs every step, and saves at the branch point."""
    from seqloom.train.loop import resolve

    steps, at = plan.trunk.train.steps, plan.branch_at
    if not 0 < at < steps:
        raise ConfigError(f"branches cannot begin after {at} of {steps} steps")
    train = replace(
        run.train, log_every=1, monitor_every=None, evaluate_every=steps, save_every=at, keep_steps=steps // at + 2
    )
    return resolve(replace(run, train=train, seed=seed))[0]


class _Progress(Observer):
    """Passes on messages, and shows how far all courses together have come."""

    def __init__(self, watch: Observer, what: str, done: int, total: int) -> None:
        self._watch, self._what, self._done, self._total = watch, what, done, total
        self.stepped = False

    def on_prepare(self, what: str, share: float) -> None:
        self._watch.on_prepare(what, share)

    def on_step(self, metrics: dict[str, float]) -> None:
        self.stepped = True
        self._watch.on_prepare(self._what, self._done / self._total)

    def on_message(self, text: str) -> None:
        self._watch.on_message(text)
