"""`seqloom train`: a recipe, a run.yaml or a run folder, with any setting overridden, becomes a trained model."""

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import tyro

from seqloom.cli.arguments import JsonFlag, parse, print_json
from seqloom.cli.runs import find_run, read_sources, with_sources
from seqloom.core.config import check
from seqloom.core.distributed import world
from seqloom.core.errors import ConfigError


@dataclasses.dataclass(kw_only=True)
class Options:
    """Train a recipe or a run.yaml, or go on with a run folder.

    Example: seqloom train tiny --data my_texts/ notes.jsonl=0.5 --out runs/mine --train.steps 500

    Example: seqloom train finetune --model downloads/nemotron --data chats.jsonl --out runs/tuned

    Ctrl-C, SIGTERM and SIGUSR1 finish the step, save it and leave with code 130, 143 or 138; preparing data and
    evaluating are given up at once, and a second signal acts at once everywhere. The same command goes on.

    Every setting of the run is an option too: seqloom train tiny --help lists them.
    """

    what: tyro.conf.Positional[str]
    """A recipe (see seqloom list), a run.yaml, or a run folder; comes first."""
    model: Path | None = None
    """Model or run folder whose shapes, weights and tokenizer training begins with."""
    data: tyro.conf.UseAppendAction[tuple[tuple[str, ...], ...]] = ()
    """Corpora instead of the run's own, as PATH_OR_NAME or PATH_OR_NAME=WEIGHT: files, folders, python:stdlib,
    python:installed, hf:NAME."""
    out: Path | None = None
    """Run folder; one that exists is continued. By default the run folder given, else runs/NAME of the recipe."""
    as_json: JsonFlag = False


def main(arguments: list[str]) -> None:
    if not arguments or arguments[0].startswith("-"):
        what = parse("train", Options, arguments).what
        raise ConfigError(f"'{what}' must come first: seqloom train {what} ...")
    run, folder = find_run(arguments[0])
    if base := _named_model(arguments):
        run = run.starting_from(base)  # before the options are read, whose defaults then are the folder's settings
    options = parse("train", _with_settings(run), arguments)
    run = options.run
    if options.data:
        run = with_sources(run, read_sources(options.data))
    result = train(check(run, "command line"), options.out or folder or Path("runs", run.name), options.as_json)
    if options.as_json and result:
        print_json(result)


def train(run: Any, folder: Path, to_stderr: bool) -> dict[str, Any]:
    """Train with everything shown, on standard error where standard output is for a program.

    Returns:
        the folder and the measures of the last evaluation; of several processes, the first one tells.
    """
    from rich.console import Console

    import seqloom
    from seqloom.cli.display import Display, measures
    from seqloom.core.logs import read_metrics

    rank, _ = world()
    console = Console(stderr=to_stderr, quiet=rank > 0)
    with Display(console) as display:
        place = seqloom.train(run, folder, display)
    if rank > 0:
        return {}
    valid = [record for record in read_metrics(place.metrics_path) if record.pop("kind") == "valid"][-1]
    text = f"{place.path}: trained for {valid['step']} steps; {measures(valid)}"
    console.print(text, markup=False, highlight=False, soft_wrap=True)
    return {"folder": str(place.path), **valid}


def _named_model(arguments: list[str]) -> str | None:
    """The value of --model, if it has one."""
    for option, value in zip(arguments, [*arguments[1:], ""], strict=True):
        if option.startswith("--model="):
            return option.removeprefix("--model=")
        if option == "--model" and not value.startswith("-"):
            return value
    return None


def _with_settings(run: Any) -> Any:
    """The options together with every setting of a run, which has the run's values as defaults."""
    settings: Any = Annotated[type(run), tyro.conf.arg(name="")]
    command = dataclasses.make_dataclass(
        "Command", [("run", settings, dataclasses.field(default=run))], bases=(Options,), kw_only=True
    )
    command.__doc__ = Options.__doc__
    return command
