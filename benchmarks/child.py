"""A function of this folder called in a process of its own: for peaks of memory, and for another commit's package.

`call("benchmarks.memory", "peak", "30m", folder=...)` starts `python -m benchmarks.child`, which calls the function and
prints its result as the last line. Arguments and result are plain data.
"""

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]


class ChildFailed(Exception):  # noqa: N818  # what happened, not a kind of slip
    """The other process ended with an error; holds the end of what it said."""


def call(module: str, function: str, *args: Any, cwd: Path = ROOT, env: Mapping[str, str] | None = None) -> Any:
    """What the function gives there.

    Args:
        cwd: packages are looked for here before anywhere else.
        env: added to the environment.
    Raises:
        ChildFailed: the function raised, or the process died.
    """
    done = subprocess.run(
        [sys.executable, "-m", __name__, module, function, json.dumps(args)],
        cwd=cwd,
        env={**os.environ, **(env or {})},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise ChildFailed(done.stderr[-4000:].strip() or f"exit status {done.returncode}")
    return json.loads(done.stdout.splitlines()[-1])


def where() -> str:
    """The folder of the package that this process imports."""
    import seqloom

    return str(Path(seqloom.__file__).parent)


if __name__ == "__main__":
    module_name, function_name, arguments = sys.argv[1:]
    result = getattr(importlib.import_module(module_name), function_name)(*json.loads(arguments))
    print(json.dumps(result))
