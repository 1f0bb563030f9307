"""`seqloom show`: what a run is, what it costs, and which kernels it would use on this machine."""

import json
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
    """Settings, parameters, arithmetic, memory and kernels of a recipe, run or model folder.

    Example: seqloom show hybrid_lm/tiny

    Args:
        what: a recipe, a run.yaml, a run folder, or a public model folder.
    """
    ...
