import json

import pytest

from seqloom.cli.main import main
from seqloom.core import rooms


def test_every_recipe_is_listed_with_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    main(["list"])
    lines = capsys.readouterr().out.splitlines()
    for name in rooms.recipes():
        (line,) = [line for line in lines if line.split()[0] == name]
        assert len(line.split()) > 3


def test_json_names_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    main(["list", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert set(found) == set(rooms.systems())
    assert {name for entry in found.values() for name in entry["recipes"]} == set(rooms.recipes())
    assert all(entry["about"] for entry in found.values())
