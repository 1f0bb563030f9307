"""`seqloom list`: what can be trained, with its size and one line on each."""

import importlib
import inspect
from typing import Any

from seqloom.cli.arguments import JsonFlag, parse, print_json
from seqloom.core import rooms
from seqloom.train.run import TO_BE_NAMED


def main(arguments: list[str]) -> None:
    parse("list", list_recipes, arguments)


def list_recipes(*, as_json: JsonFlag = False) -> None:
    """Systems and their recipes, with parameters in all, parameters that one token touches, and layers.

    Example: seqloom list --json
    """
    found: dict[str, Any] = {
        system: {"about": _first_line(importlib.import_module(f"seqloom.systems.{system}")), "recipes": {}}
        for system in sorted(rooms.systems(), key=lambda name: name != rooms.MAIN_SYSTEM)
    }
    for name, make in rooms.recipes().items():
        system, _ = name.split("/")
        run = make()
        size = {} if run.init_from == TO_BE_NAMED else rooms.part(system, "budget").headline(run.model)
        found[system]["recipes"][name] = {"about": _first_line(make), **size}
    if as_json:
        print_json(found)
        return
    for system, entry in found.items():
        print(f"{system}: {entry['about']}")
        rows = [(rooms.short_name(name), facts) for name, facts in entry["recipes"].items()]
        width = max(len(name) for name, _ in rows)
        print(f"  {'':{width}}  {'in all':>7}  {'active':>7}  layers")
        for name, facts in rows:
            total, active = count(facts.get("total_parameters")), count(facts.get("active_with_head"))
            print(f"  {name:{width}}  {total:>7}  {active:>7}  {facts.get('layers', '-'):>6}  {facts['about']}")


def count(number: float | None) -> str:
    """Three digits and the letter of a power of thousand, as model names are made: 120.7 B is `121B`."""
    if number is None:
        return "-"
    for letter in ("", "k", "M", "B"):
        if number < 999.5:
            return f"{number:#.3g}".rstrip(".") + letter if letter else str(number)
        number /= 1000
    return f"{number:#.3g}".rstrip(".") + "T"


def _first_line(thing: object) -> str:
    return (inspect.getdoc(thing) or "").split("\n")[0]
