"""What a finished folder holds, so that any later change to it can be named.

`manifest.json` lists size and SHA-256 of every file, and ends with the SHA-256 of its own list: a changed byte is found
wherever it falls, in the manifest too. Files that are not listed do not matter.
"""

import hashlib
import json
import os
from collections.abc import Callable
from io import BufferedReader
from pathlib import Path, PurePosixPath
from typing import Any

from seqloom.core.checkpoint.commit import write_file
from seqloom.core.checkpoint.json_file import parse_json
from seqloom.core.checkpoint.regular_file import opened
from seqloom.core.errors import CheckpointError

NAME = "manifest.json"
FORMAT = 1

_MOST_BYTES = 16 << 20


def write_manifest(folder: Path) -> None:
    """List every other file under a folder in its manifest.json."""
    files = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path != folder / NAME:
            with path.open("rb") as file:
                files[path.relative_to(folder).as_posix()] = {"bytes": path.stat().st_size, "sha256": _digest(file)}
    write_file(folder / NAME, _render(files))


def verify(folder: Path, needed: Callable[[str], object] = lambda name: True) -> list[str]:
    """What is wrong with a folder, one line per file in words for the user; an empty list if all is as written.

    Args:
        needed: says of a listed file whether its digest matters now; all do by default.
    """
    if not folder.is_dir():
        return ["the folder is missing"]
    try:
        with opened(folder / NAME) as descriptor:
            stored = os.pread(descriptor, _MOST_BYTES + 1, 0)
    except CheckpointError as error:
        return [_briefly(error, folder)]
    damaged = f"{NAME}: damaged (if it is not of this program, remove it to load the folder unchecked)"
    try:
        manifest = parse_json(stored, NAME)
        if manifest["format"] != FORMAT:
            return [f"{NAME}: format {manifest['format']!r}, this version reads {FORMAT}"]
        if stored != _render(manifest["files"]) or any(map(_leads_out, manifest["files"])):
            return [damaged]
        found = {name: _problem(folder, name, facts) for name, facts in manifest["files"].items() if needed(name)}
    except (CheckpointError, TypeError, KeyError, AttributeError):
        return [damaged]
    return [f"{name}: {problem}" for name, problem in found.items() if problem]


def _problem(folder: Path, name: str, facts: dict[str, Any]) -> str | None:
    try:
        with opened(folder / name, folder) as descriptor:
            if (size := os.fstat(descriptor).st_size) != facts["bytes"]:
                return f"{size} bytes long, {facts['bytes']} were written"
            with os.fdopen(descriptor, "rb", closefd=False) as file:
                return None if _digest(file) == facts["sha256"] else "digest differs"
    except CheckpointError as error:
        return _briefly(error, folder).removeprefix(f"{name}: ")


def _leads_out(name: str) -> bool:
    return not {"..", "/"}.isdisjoint(PurePosixPath(name).parts)


def _digest(file: BufferedReader) -> str:
    return hashlib.file_digest(file, "sha256").hexdigest()


def _briefly(error: CheckpointError, folder: Path) -> str:
    return str(error).removeprefix(f"{folder}{os.sep}")


def _render(files: dict[str, dict[str, Any]]) -> bytes:
    listed = json.dumps(files, indent=1)
    own = hashlib.sha256(listed.encode()).hexdigest()
    return f'{{\n"format": {FORMAT},\n"files": {listed},\n"sha256": "{own}"\n}}\n'.encode()
