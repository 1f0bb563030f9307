"""`seqloom study`: a claim of a paper as a program; without a name, the list of studies."""

import dataclasses
import importlib
import sys
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from seqloom.cli.arguments import JsonFlag, parse, print_json
from seqloom.core.errors import ConfigError

_HELP = """\
usage: seqloom study NAME [options]

{studies}

seqloom study NAME --help explains one study.

Example: seqloom study stability --methods base qk_norm --out runs/stability
"""


def main(arguments: list[str]) -> None:
    from seqloom.studies.catalog import STUDIES

    if not arguments or arguments[0] in ("-h", "--help"):
        print(_HELP.format(studies="\n".join(f"  {name:18}{what}" for name, what in STUDIES.items())), end="")
        sys.exit(0)
    name, *rest = arguments
    if name not in STUDIES:
        near = get_close_matches(name, STUDIES, n=1)
        hint = f"did you mean '{near[0]}'? " if near else ""
        raise ConfigError(f"unknown study '{name}'; {hint}known: {', '.join(STUDIES)}")
    room = importlib.import_module(f"seqloom.studies.{name}")
    command = parse(f"study {name}", _command(room.Options), rest)
    folder = command.out or Path("runs", f"study-{name}")
    options = room.Options(**{field.name: getattr(command, field.name) for field in dataclasses.fields(room.Options)})
    findings = _study(room, options, folder, command.as_json)
    if command.as_json:
        print_json({"folder": str(folder), **findings.as_data()})


def _study(room: Any, options: Any, folder: Path, to_stderr: bool) -> Any:
    """Run a study with everything shown, on standard error where standard output is for a program."""
    from rich.console import Console

    from seqloom.cli.display import Display
    from seqloom.core.config import check
    from seqloom.studies.study import PAGE

    console = Console(stderr=to_stderr)
    with Display(console) as display:
        findings = room.study(check(options, "command line"), folder, display)
    findings.write(folder)
    text = f"\n{findings.as_text()}\n\n{folder / PAGE}"
    console.print(text, markup=False, highlight=False, soft_wrap=True)
    return findings


def _command(options: Any) -> Any:
    """The options of a study, and where its results go."""
    command = dataclasses.make_dataclass(
        "Command",
        [
            ("out", Path | None, dataclasses.field(default=None)),
            ("as_json", JsonFlag, dataclasses.field(default=False)),
        ],
        bases=(options,),
        frozen=True,
        kw_only=True,
    )
    command.__doc__ = options.__doc__
    return command
