"""What a finished folder holds, so that any later change to it can be named.

`manifest.json` lists size and SHA-256 of every file, and ends with the SHA-256 of its own list: a changed byte is found
wherever it falls, in the manifest too. Files that are not listed do not matter.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

from seqloom.core.checkpoint.commit import write_file

NAME = "manifest.json"
FORMAT = 1


def write_manifest(folder: Path) -> None:
    """List every other file under a folder in its manifest.json."""
    files = {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": _digest(path)}
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path != folder / NAME
    }
    write_file(folder / NAME, _render(files))


def verify(folder: Path) -> list[str]:
    """What is wrong with a folder, one line per file in words for the user; an empty list if all is as written."""
    if not folder.is_dir():
        return ["the folder is missing"]
    try:
        stored = (folder / NAME).read_bytes()
        manifest = json.loads(stored)
        if manifest["format"] != FORMAT:
            return [f"{NAME}: format {manifest['format']!r}, this version reads {FORMAT}"]
        if stored != _render(manifest["files"]):
            return [f"{NAME}: damaged"]
    except FileNotFoundError:
        return [f"{NAME}: missing"]
    except OSError as error:
        return [f"{NAME}: cannot be read: {error.strerror}"]
    except (ValueError, TypeError, KeyError):
        return [f"{NAME}: damaged"]
    found = {name: _problem(folder / name, facts) for name, facts in manifest["files"].items()}
    return [f"{name}: {problem}" for name, problem in found.items() if problem]


def _problem(path: Path, facts: dict[str, Any]) -> str | None:
    try:
        if not path.is_file():
            return "missing"
        if (size := path.stat().st_size) != facts["bytes"]:
            return f"{size} bytes long, {facts['bytes']} were written"
        return None if _digest(path) == facts["sha256"] else "digest differs"
    except OSError as error:
        return f"cannot be read: {error.strerror}"


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _render(files: dict[str, dict[str, Any]]) -> bytes:
    listed = json.dumps(files, indent=1)
    own = hashlib.sha256(listed.encode()).hexdigest()
    return f'{{\n"format": {FORMAT},\n"files": {listed},\n"sha256": "{own}"\n}}\n'.encode()
