"""`seqloom merge`: one model out of several parts: a run's last checkpoints averaged, or adapters and their base."""

from pathlib import Path
from typing import Any

import tyro

from seqloom.cli.arguments import JsonFlag, parse, print_json
from seqloom.core import rooms
from seqloom.core.checkpoint.run_folder import RunFolder
from seqloom.core.errors import ConfigError
from seqloom.train.config import DecayShape


def main(arguments: list[str]) -> None:
    parse("merge", merge, arguments)


def merge(
    run: tyro.conf.Positional[Path],
    *,
    out: Path,
    last: int | None = None,
    shape: DecayShape | None = None,
    base: Path | None = None,
    as_json: JsonFlag = False,
) -> None:
    """Make one model folder: of a run, the average of its last checkpoints; of adapters, them and their base model.

    The average stands for a learning-rate decay that was never run.

    Example: seqloom merge runs/mine --last 4 --out runs/mine-merged

    Example: seqloom merge runs/tuned --out runs/tuned-merged

    Args:
        run: a run folder (--train.keep-steps decided how many checkpoints it keeps), or a folder of adapters.
        out: new model folder.
        last: how many checkpoints, the newest ones; all that were kept by default. Not for adapters.
        shape: the learning-rate decay that the weights stand for, minus_sqrt by default. Not for adapters.
        base: the model that the adapters sit on, if it is not where it was. Only for adapters.
    """
    if rooms.is_adapter(run):
        _merge_adapter(run, out, last, shape, base)
        facts: dict[str, Any] = {"adapter": str(run)}
        done = "the model with its adapters folded in"
    else:
        steps = _merge_checkpoints(run, out, last, shape, base)
        facts = {"steps": steps}
        done = f"the average of steps {', '.join(map(str, steps))}"
    if as_json:
        print_json({"folder": str(out), **facts})
    else:
        print(f"{out}: {done}")


def _merge_adapter(run: Path, out: Path, last: int | None, shape: DecayShape | None, base: Path | None) -> None:
    for option, value in (("--last", last), ("--shape", shape)):
        if value is not None:
            raise ConfigError(f"{option}: averages checkpoints; {run} holds adapters, whose average is no adapter")
    from rich.console import Console

    from seqloom.cli.display import Display

    folder, _ = rooms.newest(run)
    with Display(Console(stderr=True)) as display:
        rooms.part(rooms.owner(folder), "adapter").merge(folder, out, base, display.on_prepare)


def _merge_checkpoints(
    run: Path, out: Path, last: int | None, shape: DecayShape | None, base: Path | None
) -> list[int]:
    if base is not None:
        raise ConfigError(f"--base: is the model under adapters, and {run} holds none")
    from seqloom.train.merge import merge as merge_checkpoints

    return merge_checkpoints(RunFolder(run), out, last, shape or "minus_sqrt")
