"""Configuration: one frozen dataclass serves as Python object, file schema and command line.

A config is a frozen keyword-only dataclass whose bounds are `annotated_types` marks (`Annotated[int, Ge(1)]`).
`parse` turns plain data from a file into a config and names every mistake by its dotted path; `to_yaml` writes it back.
pydantic and PyYAML are imported only when a file is read, checked or written.
"""

import dataclasses
import difflib
import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, dataclass_transform

from seqloom.core.errors import ConfigError

if TYPE_CHECKING:
    from annotated_types import Ge, Gt, Interval, Le, Lt, MinLen
else:
    try:
        from annotated_types import Ge, Gt, Interval, Le, Lt, MinLen
    except ImportError:  # the bounds are then documentation only; files cannot be checked without pydantic anyway

        def _bound(*args: Any, **kwargs: Any) -> tuple[Any, ...]:
            return (*args, kwargs)

        Ge = Gt = Interval = Le = Lt = MinLen = _bound

__all__ = ["Ge", "Gt", "Interval", "Le", "Lt", "MinLen", "check", "config", "parse", "read_yaml", "schema", "to_data", "to_yaml"]

T = TypeVar("T")


@dataclass_transform(frozen_default=True, kw_only_default=True)
def config(cls: type[T]) -> type[T]:
    """Make a frozen, keyword-only dataclass that refuses unknown keys when read from a file."""
    cls.__pydantic_config__ = {"extra": "forbid", "allow_inf_nan": False}  # type: ignore[attr-defined]
    return dataclasses.dataclass(frozen=True, kw_only=True)(cls)


def parse(cls: type[T], data: Any, source: str) -> T:
    """Build a config from plain data (as read from a file), checking names, types and bounds.

    Args:
        source: what to call the data in an error, for instance the file name.
    Raises:
        ConfigError: lists every mistake with dotted path, value seen, and the nearest known name for unknown keys.
    """
    from pydantic import ValidationError

    try:
        return _adapter(cls).validate_python(data)  # type: ignore[no-any-return]
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(cls, mistake, source) for mistake in error.errors())) from None


def check(value: T, source: str = "config") -> T:
    """Check the bounds of a config that was built in Python or on the command line."""
    return parse(type(value), to_data(value), source)


def to_data(value: Any) -> dict[str, Any]:
    """A config as plain dictionaries, lists and scalars."""
    return json.loads(json.dumps(dataclasses.asdict(value)))  # type: ignore[no-any-return]


def to_yaml(value: Any) -> str:
    """A config as YAML text that `parse` reads back to an equal object."""
    import yaml

    return yaml.safe_dump(to_data(value), sort_keys=False, allow_unicode=True, width=110)


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML file that must hold one mapping.

    Raises:
        ConfigError: the file is missing, unreadable, not YAML, or not a mapping.
    """
    import yaml

    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not a YAML file: {error}") from error
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: expected a mapping of settings, found {type(data).__name__}")
    return data


def schema(cls: type[Any]) -> dict[str, Any]:
    """The JSON Schema of a config, for editors and `seqloom config schema`."""
    return _adapter(cls).json_schema()  # type: ignore[no-any-return]


@lru_cache(maxsize=None)
def _adapter(cls: type[Any]) -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(cls)


def _explain(cls: type[Any], mistake: Mapping[str, Any], source: str) -> str:
    path = [str(part) for part in mistake["loc"]]
    where = f"{source}: {'.'.join(path) or 'top level'}"
    if mistake["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        known = _names_at(cls, path[:-1])
        near = difflib.get_close_matches(path[-1], known, n=1, cutoff=0.5)
        hint = f"did you mean '{near[0]}'? " if near else ""
        return f"{where}: unknown setting; {hint}known here: {', '.join(known)}"
    if mistake["type"] in ("missing", "missing_argument"):
        return f"{where}: this setting is required"
    if mistake["type"] == "value_error":  # a config's own check: its message already names field and value
        return f"{source}: {mistake['ctx']['error']}"
    message = str(mistake["msg"])
    return f"{where}: {message[:1].lower()}{message[1:]} (got {mistake['input']!r})"


def _names_at(cls: Any, path: list[str]) -> list[str]:
    """Field names of the dataclass reached by a dotted path, looking through unions and containers."""
    import typing

    for part in path:
        hints = typing.get_type_hints(cls) if dataclasses.is_dataclass(cls) else {}
        if part in hints:
            cls = _dataclass_in(hints[part]) or cls
    return [field.name for field in dataclasses.fields(cls)] if dataclasses.is_dataclass(cls) else []


def _dataclass_in(annotation: Any) -> Any:
    import typing

    if dataclasses.is_dataclass(annotation):
        return annotation
    return next((found for inner in typing.get_args(annotation) if (found := _dataclass_in(inner))), None)
