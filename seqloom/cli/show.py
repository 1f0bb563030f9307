"""`seqloom show`: what a run or model is, what it costs, and which kernels it would use on this machine."""

import inspect
from collections import Counter
from pathlib import Path
from typing import Any

import tyro

from seqloom.cli.arguments import JsonFlag, parse, print_json
from seqloom.cli.runs import RUN_FILE, find_run
from seqloom.core import rooms
from seqloom.core.checkpoint.run_folder import RunFolder
from seqloom.core.config import to_data, to_yaml
from seqloom.core.errors import ConfigError
from seqloom.core.readable import binary
from seqloom.train.run import TO_BE_NAMED


def main(arguments: list[str]) -> None:
    parse("show", show, arguments)


def show(what: tyro.conf.Positional[str], *, as_json: JsonFlag = False) -> None:
    """Settings, size, memory, number formats and kernels of a recipe, run or model folder.

    Example: seqloom show nemotron3_super

    Args:
        what: a recipe, a run.yaml, a run folder, or a public model folder.
    """
    path = Path(what)
    if rooms.is_recipe(what):
        what = rooms.full_name(what)
        facts, settings = describe_run(rooms.recipe(what))
        what += f"\n{inspect.getdoc(rooms.recipes()[what])}"
    elif not (path / RUN_FILE).exists() and ((path / "config.json").exists() or rooms.is_adapter(path)):
        facts, settings = describe_folder(path)
    else:
        run, folder = find_run(what)
        facts, settings = describe_run(run)
        if folder is not None:
            facts |= describe_checkpoint(folder)
    if as_json:
        print_json({**facts, "settings": to_data(settings)})
        return
    print(f"{what}\n\nsettings\n{to_yaml(settings)}", end="")
    for title, values in facts.items():
        print(f"\n{title.replace('_', ' ')}")
        for line in table(values):
            print(f"  {line}")


def describe_run(run: Any) -> tuple[dict[str, dict[str, Any]], Any]:
    """Cost, number formats and kernels of a run as it would be trained here, and its settings."""
    import torch

    from seqloom.core.devices import available_bytes
    from seqloom.numerics.precision import apply_precision, describe_precision, dtype_of
    from seqloom.ops.kernels import describe
    from seqloom.train.loop import resolve

    run, device = resolve(run)
    kernel = {f"kernels_on_{device.type}": describe(device, dtype_of(run.precision.activations))}
    if run.init_from == TO_BE_NAMED:  # the folder that will be named decides the rest
        return kernel, run
    with torch.device("meta"):
        model = run.model.build()
    formats, in_short = apply_precision(model, run.precision), describe_precision(model)
    facts = {
        **kernel,
        "number_formats": formats,
        **({"precision_recipe": {run.precision.recipe: in_short}} if in_short else {}),
        **rooms.part(run.system, "budget").describe(run.model),
        f"training_on_{device.type}": {
            "needed_bytes": _needed_bytes(run),
            "available_bytes": available_bytes(device),
            **_adapters(run.adapter_report()),
        },
    }
    return facts, run


def _needed_bytes(run: Any) -> int | None:
    """Estimated memory of a training; None if the folder that it begins with is not here to tell."""
    try:
        needed: int = run.model.training_bytes(run)
        return needed
    except ConfigError:
        return None


def _adapters(report: dict[str, Any]) -> dict[str, str]:
    """What adapters reach, by kind of layer."""
    return {
        f"adapters_on_{row['name']}": f"{row['adapted_layers']} of {row['layers']} layers, {row['parameters']:,} "
        f"parameters in {', '.join(row['projections']) or 'nothing'}"
        for row in report.get("coverage", {}).values()
    }


def describe_folder(folder: Path) -> tuple[dict[str, dict[str, Any]], Any]:
    """Cost and content of a model folder that no run here made, and its shapes."""
    system = rooms.owner(folder)
    config, files = rooms.part(system, "folder_facts").read_facts(folder)
    return {**rooms.part(system, "budget").describe(config), "folder": files}, config


def describe_checkpoint(folder: Path) -> dict[str, dict[str, Any]]:
    """Content of the newest checkpoint of a run, whose digests are not compared here; nothing if there is none."""
    run = RunFolder(folder)
    steps = run.steps()
    if not steps:
        return {}
    newest = run.folder(steps[-1])
    _, files = rooms.part(rooms.owner(newest), "folder_facts").read_facts(newest)
    return {"newest_checkpoint": {"step": steps[-1], **files}}


def table(values: dict[str, Any]) -> list[str]:
    """Names and values in two columns; many of equal value, as number formats usually are, become one line."""
    counted = Counter(map(str, values.values()))
    if len(values) > 8 and len(counted) == 1:
        return [f"all {len(values)} modules  {next(iter(counted))}"]
    wide = max(map(len, values))
    digits = max((len(f"{value:,}") for value in values.values() if isinstance(value, int)), default=0)
    return [f"{name.replace('_', ' '):{wide}}  {readable(name, value, digits)}" for name, value in values.items()]


def readable(name: str, value: Any, digits: int = 0) -> str:
    """Whole numbers with separators, bytes also in a unit that a person reads."""
    if value is None or value == []:
        return "-"
    if isinstance(value, list):
        more = f" and {len(value) - 20:,} more" if len(value) > 20 else ""
        return ", ".join(readable(name, entry) for entry in value[:20]) + more
    if not isinstance(value, int):
        text = str(value)
        return text if text.isprintable() else repr(text)  # names from a folder of other origin
    number = f"{value:{digits},}"
    return f"{number}  {binary(value)}" if "bytes" in name and value >= 1024 else number
