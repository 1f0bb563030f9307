"""One description of each system, by which the same suite is run over all of them.

    write, make   data of a kilobyte, and a run of a second on it
    split         the same run with its steps taken in so many micro-batches, or how it must change to allow that
    pad           a micro-batch with more padding than it needs; None where nothing is padded
    falls         what must fall when one batch is learned again and again
    compared      a row of a comparison that is this system's own
    counted       tensors that the model's size counts: hybrids are published with the routers' correction counted

`Killer` trains in processes that kill themselves where they are told to.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

import micro_runs
import tiny_speech
from seqloom.data.rows import NO_DOCUMENT, NO_TARGET, Rows
from tests.systems.attention_agent.small import small

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class System:
    """What the suite must know of a system; see the module."""

    name: str
    write: Callable[[Path], object]
    make: Callable[[Path], Any]
    split: Callable[[Any, int], Any]
    pad: Callable[[Any], Any] | None
    falls: str
    unit: str
    compared: str
    counted: Callable[[nn.Module], Iterable[Tensor]] = nn.Module.parameters


def timed(run: Any) -> Any:
    """Five steps, saved after the second, the fourth and the last one, measured after the third and the last."""
    train = replace(run.train, steps=5, save_every=2, keep_steps=2, evaluate_every=3, log_every=1, device="cpu")
    return replace(run, train=train)


def hybrid_lm(data: Path) -> Any:
    run = micro_runs.narrow(data)()
    return timed(replace(run, precision=replace(run.precision, activations="fp32")))


def split_rows(run: Any, pieces: int) -> Any:
    return replace(run, task=replace(run.task, micro_rows=run.task.batch_rows // pieces))


def pad_rows(micro: Any) -> Any:
    tokens, targets, documents = micro.rows
    rows = Rows(
        F.pad(tokens, (0, 9)), F.pad(targets, (0, 9), value=NO_TARGET), F.pad(documents, (0, 9), value=NO_DOCUMENT)
    )
    return micro._replace(rows=rows, ahead=[F.pad(later, (0, 9), value=NO_TARGET) for later in micro.ahead])


def deep_speech2(data: Path) -> Any:
    return timed(tiny_speech.narrow(data))


def split_utterances(run: Any, pieces: int) -> Any:
    """Without batch normalization, whose statistics are those of the whole batch."""
    return replace(
        run,
        model=replace(run.model, norm="none"),
        task=replace(run.task, micro_rows=run.task.batch_rows // pieces),
    )


def pad_utterances(micro: Any) -> Any:
    return micro._replace(features=F.pad(micro.features, (0, 8), value=3.0), targets=F.pad(micro.targets, (0, 3)))


def attention_agent(data: Path) -> Any:
    return timed(small())


def split_unrolls(run: Any, pieces: int) -> Any:
    return replace(run, task=replace(run.task, micro_environments=run.task.batch // pieces))


SYSTEMS = {
    system.name: system
    for system in (
        System(
            name="hybrid_lm",
            write=micro_runs.write_texts,
            make=hybrid_lm,
            split=split_rows,
            pad=pad_rows,
            falls="loss",
            unit="tokens",
            compared="least validation bits per byte",
            counted=lambda model: model.state_dict().values(),
        ),
        System(
            name="deep_speech2",
            write=partial(tiny_speech.write_corpus, each=4),
            make=deep_speech2,
            split=split_utterances,
            pad=pad_utterances,
            falls="loss",
            unit="utterances",
            compared="least validation wer",
        ),
        System(
            name="attention_agent",
            write=Path.mkdir,
            make=attention_agent,
            split=split_unrolls,
            pad=None,
            falls="value_loss",
            unit="frames",
            compared="greatest validation return mean",
        ),
    )
}


def _in_a_step() -> None:
    """Die in the fourth step, when some parameters are new and others old."""
    from seqloom.train.optimizers import Optimizers

    real, calls = Optimizers.step, [0]

    def step(self: Any, rate: float) -> None:
        calls[0] += 1
        real(self, rate)
        if calls[0] == 4:
            os.kill(os.getpid(), signal.SIGKILL)

    Optimizers.step = step  # type: ignore[method-assign]


def _in_a_save() -> None:
    """Die in the second save, when everything is written and nothing is committed."""
    from seqloom.train.state import StepContents

    real, calls = StepContents.write, [0]

    def write(self: Any, *given: Any) -> None:
        calls[0] += 1
        real(self, *given)
        if calls[0] == 2:
            os.kill(os.getpid(), signal.SIGKILL)

    StepContents.write = write  # type: ignore[method-assign]


DEATHS: dict[str, Callable[[], None]] = {"step": _in_a_step, "save": _in_a_save}


class Killer:
    """A process that never computes, and forks one for each training; so only the first one waits for imports."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "systems.conformance"],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT / "tests"), "OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def train(self, system: str, data: Path, folder: Path, death: str) -> int:
        """Train until it dies; gives its exit code."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([system, str(data), str(folder), death]) + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def close(self) -> None:
        self._process.communicate()


def serve() -> None:
    """Read orders from standard input; answer each with an exit code."""
    import torch
    import torch._dynamo

    import seqloom.train.loop
    from seqloom.core.config import to_yaml

    torch.set_num_threads(1)
    for name, system in SYSTEMS.items():
        to_yaml(system.make(ROOT))
        __import__(f"seqloom.systems.{name}.task")
    for line in sys.stdin:
        name, data, folder, death = json.loads(line)
        number = os.fork()
        if number == 0:
            code = 1
            try:
                DEATHS[death]()
                seqloom.train.loop.train(SYSTEMS[name].make(Path(data)), folder)
                code = 0
            finally:
                os._exit(code)
        _, status = os.waitpid(number, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    serve()
