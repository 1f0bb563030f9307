"""`seqloom list`: what can be trained, with one line on each."""

import importlib
import inspect
from typing import Any

from seqloom.cli.arguments import JsonFlag, parse, print_json
from seqloom.core import rooms


def main(arguments: list[str]) -> None:
    parse("list", list_recipes, arguments)


def list_recipes(*, as_json: JsonFlag = False) -> None:
    """Systems and their recipes.

    Example: seqloom list --json
    """
    found: dict[str, Any] = {
        system: {"about": _first_line(importlib.import_module(f"seqloom.systems.{system}")), "recipes": {}}
        for system in rooms.systems()
    }
    for name, make in rooms.recipes().items():
        found[name.split("/")[0]]["recipes"][name] = _first_line(make)
    if as_json:
        print_json(found)
        return
    for system, entry in found.items():
        print(f"{system}: {entry['about']}")
        for name, line in entry["recipes"].items():
            print(f"  {name:20} {line}")


def _first_line(thing: object) -> str:
    return (inspect.getdoc(thing) or "").split("\n")[0]
