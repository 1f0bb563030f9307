"""What one process of a group does: a training through the command's own error handling, watched or disturbed."""

import os
import signal
import sys
import time
import traceback
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from distributed.group import Order

import tiny_models
from seqloom.core import distributed
from seqloom.core.checkpoint.run_folder import RunFolder
from seqloom.core.checkpoint.tensors import save_tensors
from seqloom.core.config import check, parse, read_yaml
from seqloom.core.distributed import announce
from seqloom.core.errors import DataError, SeqloomError
from seqloom.systems.hybrid_lm.config import HybridConfig, Run
from seqloom.systems.hybrid_lm.recipes import tiny
from seqloom.train import loop
from seqloom.train.parallel import spread  # noqa: F401  # imported once, for all groups
from seqloom.train.state import TrainState


def work(order: Order) -> None:
    """Train in this process and end it."""
    code = 1
    try:
        run = parse(Run, read_yaml(Path(order.run)), order.run)
        parallel = replace(run.train.parallel, **dict(order.parallel))
        run = replace(run, train=replace(run.train, parallel=parallel, **dict(order.changes)))
        if order.excited:
            _excite()
        if order.gradients:
            _keep_gradients(Path(order.gradients))
        if order.fault and int(os.environ["RANK"]) == order.fault_rank:
            _disturb(order)
        if order.slow_disk:
            _slow_down()
        loop.train(run, order.folder)
        code = 0
    except SeqloomError as error:
        code = error.exit_code
        if announce(error):
            print(f"rank {os.environ['RANK']}: {error}", file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def warm_up() -> None:
    """What takes long once, done before the first fork."""
    check(tiny())


def _excite() -> None:
    build = HybridConfig.build
    HybridConfig.build = lambda self: tiny_models.excite(build(self))  # type: ignore[method-assign]


def _keep_gradients(path: Path) -> None:
    norm = TrainState.norm

    def keep(self: TrainState, gradients: list[torch.Tensor]) -> float:
        if self.spread is None:
            whole = {name: p.grad for name, p in self.model.named_parameters() if p.requires_grad}
        else:
            whole = {name: self.spread.join(name, piece.grad) for name, piece in self.spread.pieces.items()}
        if os.environ["RANK"] == "0" and not path.exists():
            save_tensors(path, whole)
        return norm(self, gradients)

    TrainState.norm = keep  # type: ignore[method-assign]


def _disturb(order: Order) -> None:
    step, left = loop._step, [order.fault_step]

    def faulty(run: Run, task: Any, state: TrainState, *rest: Any, **named: Any) -> Any:
        if state.step in left:
            left.clear()
            if order.fault == "data":
                raise DataError("a row is damaged")
            if order.fault == "bug":
                raise ValueError("a slip")
            if order.fault == "nan":
                return _poisoned(step, run, task, state, *rest, **named)
            os.kill(os.getpid(), signal.SIGKILL if order.fault == "kill" else signal.SIGTERM)
        return step(run, task, state, *rest, **named)

    loop._step = faulty


def _slow_down() -> None:
    save, distributed.GRACE_SECONDS = RunFolder.save, 2.0

    def slowly(self: RunFolder, *rest: Any) -> None:
        time.sleep(3.0)
        save(self, *rest)

    RunFolder.save = slowly  # type: ignore[method-assign]


def _poisoned(step: Any, run: Run, task: Any, state: TrainState, *rest: Any, **named: Any) -> Any:
    """A step whose loss is not a number on this rank."""
    loss = task.loss
    task.loss = lambda *given: (lambda found: found._replace(total=found.total * torch.nan))(loss(*given))
    try:
        return step(run, task, state, *rest, **named)
    finally:
        del task.loss
