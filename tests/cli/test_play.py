import importlib.util
import json
from pathlib import Path

import pytest

from seqloom.cli.play import main
from seqloom.core.errors import ConfigError
from seqloom.train.loop import train
from tests.systems.attention_agent.small import small


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "small"
    train(small(steps=2), folder)
    return folder


@pytest.mark.full
def test_numbers_film_and_page(played: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    film, page = tmp_path / "film.png", tmp_path / "page.html"
    arguments = ["--episodes", "2", "--attention", "--saliency", "--video", str(film), "--page", str(page)]
    main([str(played), *arguments, "--json"])
    found = json.loads(capsys.readouterr().out)
    assert [episode["steps"] for episode in found["episodes"]] == [44, 44]
    assert len(found["episodes"][0]["heads"]) == 4
    assert {"entropy", "what_where", "near_ball", "near_paddle_uniform"} <= found["episodes"][0]["heads"][0].keys()
    assert -1 <= found["episodes"][0]["saliency_correlation"] <= 1
    assert (found["video"], found["page"]) == (str(film), str(page))
    assert film.read_bytes().count(b"fcTL") == 88
    assert "small plays catch" in page.read_text(encoding="utf-8")
    main([str(played), "--episodes", "2", "--attention"])
    lines = capsys.readouterr().out.splitlines()
    returns = [episode["return"] for episode in found["episodes"]]
    assert lines[0] == f"episode 0: return {returns[0]:g} in 44 steps"
    assert lines[1].startswith("  query 1: entropy ")
    assert lines[-1] == f"mean return of 2: {sum(returns) / 2:.4g}"


def test_the_seed_and_greed_decide(played: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = []
    for more in ([], [], ["--seed", "7"], ["--greedy"]):
        main([str(played), "--episodes", "4", "--json", *more])
        said.append(capsys.readouterr().out)
    assert said[0] == said[1]
    assert len(set(said)) == 3


def test_mistakes_are_named(played: Path, tmp_path: Path) -> None:
    for arguments, said in (
        ([str(tmp_path)], "give a run folder"),
        ([str(played), "--episodes", "0"], "--episodes: 0 is not allowed"),
        ([str(played), "--video", "film.mp4"], r"ends in \.gif, or in \.png"),
        ([str(played), "--video", str(tmp_path / "no" / "film.png")], "cannot be written"),
    ):
        with pytest.raises(ConfigError, match=said):
            main(arguments)


@pytest.mark.skipif(importlib.util.find_spec("PIL") is None, reason="Pillow is not installed")
def test_a_gif(played: Path, tmp_path: Path) -> None:
    main([str(played), "--video", str(tmp_path / "film.gif")])
    assert (tmp_path / "film.gif").read_bytes().startswith(b"GIF89a")
