"""`seqloom config`: what a run file may hold."""

from typing import Literal

import tyro

from seqloom.cli.arguments import parse, print_json
from seqloom.core import rooms
from seqloom.core.config import schema


def main(arguments: list[str]) -> None:
    parse("config", config, arguments)


def config(what: tyro.conf.Positional[Literal["schema"]], system: tyro.conf.Positional[str] = "hybrid_lm") -> None:
    """JSON Schema of a system's run.yaml, for editors and checkers.

    Example: seqloom config schema hybrid_lm > run.schema.json

    Args:
        what: schema
        system: whose run file.
    """
    assert what == "schema"
    print_json(schema(rooms.part(system, "config").Run))
