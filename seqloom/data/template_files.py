"""The chat templates of a model folder: where they stand, read and written.

    chat_template.jinja                          the one that is used
    additional_chat_templates/NAME.jinja         more of them, such as tool_use for conversations with tools
    tokenizer_config.json  "chat_template"       the older place: a text, or a list of {name, template}
    chat_template.json     "chat_template"       an older place still, of processors

The first place that has any is used and the others are passed over, as `transformers` does: a folder that was saved
again by a newer program may still hold an older template. Written are the first two.
"""

import os
import re
from pathlib import Path
from typing import Any

from seqloom.core.checkpoint.json_file import read_json
from seqloom.core.checkpoint.regular_file import opened, read_into
from seqloom.core.errors import CheckpointError, DataError
from seqloom.data.template_program import MAX_SOURCE

FILE, MORE, OLD_FILE = "chat_template.jinja", "additional_chat_templates", "chat_template.json"
MAX_TEMPLATES = 16
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")


def read_templates(folder: Path, settings: dict[str, Any]) -> dict[str, str]:
    """The templates of a folder by name; the one that is used is called `default`.

    Args:
        settings: content of tokenizer_config.json.
    Raises:
        DataError: a file that cannot be read or is not what it should be.
    """
    if found := _from_files(folder):
        return found
    if settings.get("chat_template") is not None:
        return _from_json(settings["chat_template"], folder / "tokenizer_config.json")
    old = folder / OLD_FILE
    if not os.path.lexists(old):
        return {}
    try:
        return _from_json(read_json(old).get("chat_template"), old)
    except CheckpointError as error:
        raise DataError(str(error)) from None


def write_templates(folder: Path, templates: dict[str, str]) -> None:
    """Write templates where `read_templates` and `transformers` find them."""
    for name, text in templates.items():
        path = folder / FILE if name == "default" else folder / MORE / f"{name}.jinja"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(text.encode())


def read_text(path: Path, limit: int, folder: Path | None = None) -> str:
    """A text file of a folder that nobody here wrote, of at most so many bytes.

    Raises:
        DataError: which file, and why it cannot be read.
    """
    try:
        with opened(path, folder) as descriptor:
            size = os.fstat(descriptor).st_size
            if size > limit:
                raise DataError(f"{path}: {size:,} bytes; at most {limit:,} are allowed")
            data = bytearray(size)
            read_into(descriptor, memoryview(data), 0)
            return data.decode("utf-8")
    except CheckpointError as error:
        raise DataError(str(error)) from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 at byte {error.start}") from None


def _from_files(folder: Path) -> dict[str, str]:
    paths = {"default": folder / FILE} if os.path.lexists(folder / FILE) else {}
    more = folder / MORE
    if more.is_dir():
        paths |= {path.stem: path for path in sorted(more.glob("*.jinja"))}
    _check_names(paths, more)
    return {name: read_text(path, 4 * MAX_SOURCE, folder) for name, path in paths.items()}


def _from_json(value: Any, path: Path) -> dict[str, str]:
    found = {"default": value} if isinstance(value, str) else {}
    if isinstance(value, list) and all(isinstance(item, dict) for item in value):
        found = {item.get("name"): item.get("template") for item in value}
    if not found or not all(isinstance(name, str) and isinstance(text, str) for name, text in found.items()):
        raise DataError(f"{path}: chat_template must be a text or a list of objects with name and template")
    _check_names(found, path)
    return found


def _check_names(found: dict[str, Any], path: Path) -> None:
    if len(found) > MAX_TEMPLATES:
        raise DataError(f"{path}: {len(found)} chat templates; at most {MAX_TEMPLATES} are allowed")
    for name in found:
        if not _NAME.fullmatch(name):
            raise DataError(f"{path}: a chat template cannot be called {name!r:.80}")
