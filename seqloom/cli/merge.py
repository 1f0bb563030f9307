"""`seqloom merge`: the last checkpoints of a run, averaged into one model."""

from pathlib import Path

import tyro

from seqloom.cli.arguments import JsonFlag, parse, print_json
from seqloom.train.config import DecayShape


def main(arguments: list[str]) -> None:
    parse("merge", merge, arguments)


def merge(
    run: tyro.conf.Positional[Path],
    *,
    out: Path,
    last: int | None = None,
    shape: DecayShape = "minus_sqrt",
    as_json: JsonFlag = False,
) -> None:
    """Average the last checkpoints of a run into a model folder, which stands for a decay that was never run.

    Example: seqloom merge runs/mine --last 4 --out runs/mine-merged

    Args:
        run: a run folder; --train.keep-steps decided how many checkpoints it keeps.
        out: new model folder.
        last: how many checkpoints, the newest ones; all that were kept by default.
        shape: the learning-rate decay that the weights stand for.
    """
    from seqloom.core.checkpoint.run_folder import RunFolder
    from seqloom.train.merge import merge as merge_checkpoints

    steps = merge_checkpoints(RunFolder(run), out, last, shape)
    if as_json:
        print_json({"folder": str(out), "steps": steps})
    else:
        print(f"{out}: the average of steps {', '.join(map(str, steps))}")
