"""Configuration: one frozen dataclass serves as Python object, file schema and command line.

A config is a frozen keyword-only dataclass whose bounds are `annotated_types` marks (`Annotated[int, Ge(1)]`).
`parse` turns plain data from a file into a config and names every mistake by its dotted path; `to_yaml` writes it back.
Nothing is guessed: a yes is not a 1, "200" is not 200, and a setting written twice is an error.
pydantic and PyYAML are imported only when a file is read, checked or written.
"""

import dataclasses
import difflib
import json
import re
import typing
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, dataclass_transform

from seqloom.core.errors import ConfigError

if TYPE_CHECKING:  # "as" marks names that are meant to be imported from here
    from annotated_types import Ge as Ge
    from annotated_types import Gt as Gt
    from annotated_types import Interval as Interval
    from annotated_types import Le as Le
    from annotated_types import Lt as Lt
    from annotated_types import MinLen as MinLen
else:
    try:
        from annotated_types import Ge, Gt, Interval, Le, Lt, MinLen
    except ImportError:  # the bounds are then documentation only; files cannot be checked without pydantic anyway

        def _bound(*args: Any, **kwargs: Any) -> tuple[Any, ...]:
            return (*args, kwargs)

        Ge = Gt = Interval = Le = Lt = MinLen = _bound

T = TypeVar("T")

_TYPE = re.compile(r"(int|float|str|bool|constrained-\w+|literal\[.*\])")
"""pydantic's name for one of the types that a setting may have; it ends the path of a mistake."""


@dataclass_transform(frozen_default=True, kw_only_default=True)
def config(cls: type[T]) -> type[T]:
    """Make a frozen, keyword-only dataclass that refuses unknown keys when read from a file."""
    cls.__pydantic_config__ = {  # type: ignore[attr-defined]
        "extra": "forbid",
        "allow_inf_nan": False,
        "use_attribute_docstrings": True,
    }
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
        # Through JSON, because only there may strict checking still take a list for a tuple.
        text = json.dumps(data, default=str)
        return _adapter(cls).validate_json(text, strict=True)  # type: ignore[arg-type]  # a class is hashable
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(cls, mistake, source) for mistake in error.errors())) from None


def check(value: T, source: str = "config") -> T:
    """Check the bounds of a config that was built in Python or on the command line."""
    return parse(type(value), to_data(value), source)


def to_data(value: Any) -> dict[str, Any]:
    """A config as plain dictionaries, lists and scalars."""
    return json.loads(json.dumps(dataclasses.asdict(value), default=str))


def to_yaml(value: Any) -> str:
    """A config as YAML text that `parse` reads back to an equal object."""
    import yaml

    _, dumper = _yaml()
    return yaml.dump(to_data(value), Dumper=dumper, sort_keys=False, width=110)


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML file that must hold one mapping.

    Raises:
        ConfigError: the file is missing, unreadable, not YAML, not a mapping, or sets something twice.
    """
    import yaml

    try:
        loader, _ = _yaml()
        data = yaml.load(path.read_text(encoding="utf-8"), Loader=loader)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as YAML: {error}") from error
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: expected a mapping of settings, found {type(data).__name__}")
    return data


def schema(cls: type[Any]) -> dict[str, Any]:
    """The JSON Schema of a config, for editors and `seqloom config schema`."""
    return _adapter(cls).json_schema()  # type: ignore[arg-type]  # a class is hashable


@cache
def _adapter(cls: Any) -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(cls)


@cache
def _yaml() -> tuple[Any, Any]:
    """PyYAML's safe loader and dumper, for which `1e-4` is a number and a key set twice an error."""
    import yaml

    class Loader(yaml.SafeLoader):
        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            names = [key.value for key, _ in node.value]
            for index, (key, _) in enumerate(node.value):
                if key.value in names[:index]:
                    raise yaml.MarkedYAMLError(None, None, f"'{key.value}' is set twice", key.start_mark)
            return super().construct_mapping(node, deep)

    class Dumper(yaml.SafeDumper):
        pass

    for kind in (Loader, Dumper):
        exponent = re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$")
        kind.add_implicit_resolver("tag:yaml.org,2002:float", exponent, list("-+0123456789"))
    return Loader, Dumper


def _explain(cls: type[Any], mistake: Mapping[str, Any], source: str) -> str:
    path = [str(part) for part in mistake["loc"]]
    if path[1:] and _TYPE.fullmatch(path[-1]):
        del path[-1]
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
    for part in path:
        hints = typing.get_type_hints(cls) if dataclasses.is_dataclass(cls) else {}
        if part in hints:
            cls = _dataclass_in(hints[part]) or cls
    return [field.name for field in dataclasses.fields(cls)] if dataclasses.is_dataclass(cls) else []


def _dataclass_in(annotation: Any) -> Any:
    if dataclasses.is_dataclass(annotation):
        return annotation
    return next((found for inner in typing.get_args(annotation) if (found := _dataclass_in(inner))), None)
