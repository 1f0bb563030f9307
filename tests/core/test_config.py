"""Files, Python objects and text must agree, and every mistake must be named with its place."""

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from seqloom.core.config import Ge, Gt, check, config, parse, read_yaml, schema, to_data, to_yaml
from seqloom.core.errors import ConfigError


@config
class Inner:
    rate: Annotated[float, Gt(0)] = 1e-4
    """Speed of learning."""
    kind: Literal["slow", "fast"] = "slow"


@config
class Outer:
    steps: Annotated[int, Ge(1)]
    name: str = "x"
    on: bool = True
    most: Annotated[int, Ge(1)] | None = None
    ahead: Annotated[int, Ge(0)] | Literal["auto"] = "auto"
    folder: Path | None = None
    inner: Inner = Inner()
    parts: tuple[Inner, ...] = ()

    def __post_init__(self) -> None:
        if self.name == "bad":
            raise ConfigError("name: 'bad' is taken")


def _read(folder: Path, text: str) -> Outer:
    path = folder / "run.yaml"
    path.write_text(text)
    return parse(Outer, read_yaml(path), "run.yaml")


def test_a_file_becomes_the_same_object_as_python() -> None:
    data = {"steps": 3, "inner": {"rate": 1}, "parts": [{"kind": "fast"}]}
    assert parse(Outer, data, "f") == Outer(steps=3, inner=Inner(rate=1.0), parts=(Inner(kind="fast"),))


def test_numbers_in_scientific_spelling_are_numbers(tmp_path: Path) -> None:
    assert _read(tmp_path, "steps: 3\ninner: {rate: 1e-5}").inner.rate == 1e-5


@given(name=st.text(), rate=st.floats(min_value=1e-300, max_value=1e300), steps=st.integers(1, 2**62))
def test_yaml_round_trip(name: str, rate: float, steps: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    value = Outer(
        steps=steps, name=f"_{name}", folder=Path(f"a/{steps}"), inner=Inner(rate=rate), parts=(Inner(kind="fast"),)
    )
    path = tmp_path_factory.getbasetemp() / "round_trip.yaml"
    path.write_text(to_yaml(value), encoding="utf-8", newline="")
    assert parse(Outer, read_yaml(path), "f") == value
    assert check(value) == value


@pytest.mark.parametrize("name", ["1e-4", "12e45", "no", "null", "2024-01-01", "007", "1:30", "-", "<<"])
def test_text_that_looks_like_something_else_stays_text(name: str, tmp_path: Path) -> None:
    assert _read(tmp_path, to_yaml(Outer(steps=1, name=name))).name == name


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ({"steps": 1, "stpes": 2}, "f: stpes: unknown setting; did you mean 'steps'? known here: steps, name, on"),
        (
            {"steps": 1, "inner": {"rat": 2}},
            "f: inner.rat: unknown setting; did you mean 'rate'? known here: rate, kind",
        ),
        ({"steps": 1, "parts": [{}, {"kid": 2}]}, "f: parts.1.kid: unknown setting; did you mean 'kind'?"),
        ({}, "f: steps: this setting is required"),
        ({"steps": 0}, "f: steps: input should be greater than or equal to 1 (got 0)"),
        ({"steps": 1, "most": 0}, "f: most: input should be greater than or equal to 1 (got 0)"),
        (
            {"steps": 1, "ahead": -1},
            "f: ahead: input should be greater than or equal to 0 (got -1)\nf: ahead: input should be 'auto' (got -1)",
        ),
        ({"steps": True}, "f: steps: input should be a valid integer (got True)"),
        ({"steps": "3"}, "f: steps: input should be a valid integer (got '3')"),
        ({"steps": 2.5}, "f: steps: input should be a valid integer (got 2.5)"),
        ({"steps": 1, "on": 1}, "f: on: input should be a valid boolean (got 1)"),
        ({"steps": 1, "name": False}, "f: name: input should be a valid string (got False)"),
        ({"steps": 1, "inner": {"rate": float("nan")}}, "f: inner.rate: input should be"),
        ({"steps": 1, "inner": {"rate": float("inf")}}, "f: inner.rate: input should be a finite number (got inf)"),
        ({"steps": 1, "inner": {"kind": "quick"}}, "f: inner.kind: input should be 'slow' or 'fast' (got 'quick')"),
        ({"steps": 1, "inner": 5}, "f: inner: input should be an object (got 5)"),
        ({"steps": 1, "name": "bad"}, "f: name: 'bad' is taken"),
        ([1], "f: top level: input should be an object (got [1])"),
    ],
)
def test_a_mistake_is_named_with_its_place(data: Any, expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(Outer, data, "f")
    assert str(caught.value).startswith(expected)


def test_all_mistakes_are_listed_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        parse(Outer, {"steps": 0, "nam": 1, "inner": {"rate": -1}}, "f")
    assert len(str(caught.value).splitlines()) == 3


def test_bounds_of_an_object_made_in_python_are_checked() -> None:
    with pytest.raises(ConfigError, match=r"here: inner\.rate: input should be greater than 0"):
        check(Outer(steps=1, inner=Inner(rate=-1.0)), "here")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("steps: 1\nsteps: 2", "'steps' is set twice"),
        ("inner: {rate: 1, rate: 2}", "'rate' is set twice"),
        ("- 1", "expected a mapping of settings, found list"),
        ("", "expected a mapping of settings, found NoneType"),
        ("a: [", "cannot be read as YAML"),
        ("a: !!python/object/apply:os.getcwd []", "cannot be read as YAML"),
        (b"\xff\xfe\x00", "cannot be read as YAML"),
    ],
)
def test_a_file_that_is_no_settings_file_is_refused(text: str | bytes, expected: str, tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ConfigError, match=expected) as caught:
        read_yaml(path)
    assert str(path) in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.yaml: cannot be read: No such file"):
        read_yaml(tmp_path / "none.yaml")


def test_a_config_cannot_be_changed_or_filled_by_position() -> None:
    with pytest.raises(AttributeError):
        Outer(steps=1).steps = 2  # type: ignore[misc]
    with pytest.raises(TypeError):
        Inner(1.0)  # type: ignore[misc]


def test_schema_carries_bounds_and_explanations() -> None:
    rate = schema(Outer)["$defs"]["Inner"]["properties"]["rate"]
    assert rate["exclusiveMinimum"] == 0
    assert rate["description"] == "Speed of learning."
    json.dumps(schema(Outer))


def test_plain_data_holds_only_what_json_knows() -> None:
    assert to_data(Outer(steps=2, parts=(Inner(),)))["parts"] == [{"rate": 1e-4, "kind": "slow"}]
