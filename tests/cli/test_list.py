import json
import subprocess
import sys

import pytest

from seqloom.cli.list import count
from seqloom.cli.main import main
from seqloom.core import rooms


def test_every_recipe_is_listed_with_its_size_and_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    main(["list"])
    lines = capsys.readouterr().out.splitlines()
    for name in rooms.recipes():
        (line,) = [line for line in lines if line.split()[0] == rooms.short_name(name)]
        assert len(line.split()) > 4
    (line,) = [line for line in lines if " nemotron3_super " in line]
    assert line.split()[:4] == ["nemotron3_super", "124B", "12.2B", "88"]
    (waiting,) = [line for line in lines if " finetune " in line]
    assert waiting.split()[1:4] == ["-", "-", "-"]  # the folder it is given decides
    assert line.endswith("Nemotron 3 Super 120B-A12B, latent mixture of experts with a prediction block.")


def test_json_names_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    main(["list", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert set(found) == set(rooms.systems())
    recipes = {name: facts for entry in found.values() for name, facts in entry["recipes"].items()}
    assert set(recipes) == set(rooms.recipes())
    assert all(entry["about"] for entry in [*found.values(), *recipes.values()])
    ultra = recipes["hybrid_lm/nemotron3_ultra"]
    assert (ultra["total_parameters"], ultra["layers"]) == (560_524_603_904, 108)


def test_listing_does_not_wait_for_torch() -> None:
    program = "import sys; from seqloom.cli.main import main; main(['list']); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, check=False).returncode == 0


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (None, "-"),
        (7, "7"),
        (999, "999"),
        (1234, "1.23k"),
        (999_499, "999k"),
        (999_500, "1.00M"),
        (120_668_707_840, "121B"),
    ],
)
def test_sizes_have_three_digits(number: int | None, text: str) -> None:
    assert count(number) == text
