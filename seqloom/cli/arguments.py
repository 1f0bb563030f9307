"""How every verb reads its arguments: a function's signature and docstring are its command line and help."""

import json
from collections.abc import Callable
from typing import Annotated, Any, TypeVar

import tyro

T = TypeVar("T")

JsonFlag = Annotated[
    bool, tyro.conf.FlagCreatePairsOff, tyro.conf.arg(name="json", help="Print one JSON object instead of text.")
]


def parse(verb: str, form: Callable[..., T], arguments: list[str]) -> T:
    """Call a function or class with the arguments of a verb; leaves with code 2 and a hint when they do not fit."""
    return tyro.cli(form, args=arguments, prog=f"seqloom {verb}", config=(tyro.conf.AvoidSubcommands,))


def print_json(value: Any) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=False))
