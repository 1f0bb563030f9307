"""`seqloom show`: what a run is, what it costs, and which kernels it would use on this machine."""

import json
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import tyro

from seqloom.cli.arguments import JsonFlag, parse, print_json
from seqloom.cli.runs import RUN_FILE, find_run
from seqloom.core import rooms
from seqloom.core.config import to_data, to_yaml


def main(arguments: list[str]) -> None:
    parse("show", show, arguments)


def show(what: tyro.conf.Positional[str], *, as_json: JsonFlag = False) -> None:
    """Settings, parameters, arithmetic, memory, number formats and kernels of a recipe, run or model folder.

    Example: seqloom show hybrid_lm/tiny

    Args:
        what: a recipe, a run.yaml, a run folder, or a public model folder.
    """
    folder = Path(what)
    public = what not in rooms.recipes() and (folder / "config.json").exists() and not (folder / RUN_FILE).exists()
    facts, settings = describe_folder(folder) if public else describe_run(find_run(what)[0])
    if as_json:
        print_json({**facts, "settings": to_data(settings)})
        return
    print(what)
    for title, values in facts.items():
        print(f"\n{title.replace('_', ' ')}")
        lines = _lines(values)
        width = max(map(len, lines))
        for name, text in lines.items():
            print(f"  {name:{width}}  {text}")
    print(f"\nsettings\n{to_yaml(settings)}", end="")


def describe_run(run: Any) -> tuple[dict[str, dict[str, Any]], Any]:
    """Cost, number formats and kernels of a run as it would be trained here, and its settings."""
    import torch

    from seqloom.numerics.precision import apply_precision, dtype_of
    from seqloom.ops.kernels import table
    from seqloom.train.loop import resolve

    run, device = resolve(run)
    with torch.device("meta"):
        formats = apply_precision(run.model.build(), run.precision)
    facts = {
        "cost": rooms.part(run.system, "budget").describe(run),
        "number_formats": formats,
        f"kernels_on_{device.type}": table(device, dtype_of(run.precision.activations)),
    }
    return facts, run


def describe_folder(folder: Path) -> tuple[dict[str, dict[str, Any]], Any]:
    """Cost of a model folder that no run here made, and its shapes."""
    system = rooms.owner(folder)
    fields = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config = rooms.part(system, "folder").config_from_public(fields, str(folder / "config.json"))
    return {"cost": asdict(rooms.part(system, "budget").budget(config))}, config


def _lines(values: dict[str, Any]) -> dict[str, str]:
    """Values as text; many of equal value, as number formats usually are, become one line."""
    counted = Counter(map(str, values.values()))
    if len(values) > 8 and len(counted) == 1:
        return {f"all {len(values)} modules": next(iter(counted))}
    return {name.replace("_", " "): readable(name, value) for name, value in values.items()}


def readable(name: str, value: Any) -> str:
    """Large numbers with separators, bytes also in a unit a person reads."""
    if value is None:
        return "-"
    if not isinstance(value, int):
        return str(value)
    if "bytes" in name:
        from seqloom.cli.display import size

        return f"{size(value)} ({value:,})"
    return f"{value:,}"
