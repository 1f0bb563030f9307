"""Played episodes are those of evaluations, and what is shown of them is what the agent saw."""

import io
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from seqloom.core.errors import ConfigError
from seqloom.nn.glimpse import Glimpse
from seqloom.rl.config import EnvironmentConfig
from seqloom.rl.environment import make_environment
from seqloom.systems.attention_agent import overlay, pixels
from seqloom.systems.attention_agent.attention_facts import (
    attended,
    cells,
    entropy,
    objects,
    shares,
    step_facts,
    what_where,
)
from seqloom.systems.attention_agent.evaluate import play_together
from seqloom.systems.attention_agent.play import open_player, record, recordings
from seqloom.systems.attention_agent.play_page import play_page
from seqloom.systems.attention_agent.video import animated_png, write_film
from tests.systems.attention_agent.excited import excited
from tests.systems.attention_agent.small import small


@pytest.mark.parametrize("greedy", [False, True])
def test_episodes_are_those_of_evaluations(greedy: bool) -> None:
    player = excited()
    task = replace(small().task, evaluate_greedy=greedy)
    expected = play_together(player.model, task, player.seed, range(3))
    found = list(recordings(player, 3, greedy=greedy))
    assert [(each.ret, len(each.actions), not each.complete) for each in found] == [tuple(each) for each in expected]
    assert greedy or len({tuple(each.actions) for each in found}) > 1


def test_an_episode_without_an_end_is_given_up() -> None:
    found = record(replace(excited(), limit=5), 0, pictures=3)
    assert (len(found.actions), found.complete, len(found.pictures)) == (5, False, 3)
    assert found.summary()["complete"] is False


def test_pictures_are_bounded_and_belong_to_their_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("seqloom.systems.attention_agent.play.PICTURES", 50)
    first, second = recordings(excited(), 2)
    assert [len(each.pictures) for each in (first, second)] == [44, 6]
    assert len(second.facts) == 44
    environment = make_environment(EnvironmentConfig(name="catch"))
    assert (first.pictures[0].frame[-2:] == (60, 220, 60)).all(-1).any()
    assert not (first.pictures[0].frame == first.pictures[1].frame).all()
    environment.close()


def test_other_cores_play_without_attention() -> None:
    for core in ("lstm", "feed_forward"):
        found = record(excited(core=core), 0, with_saliency=True)
        assert not found.facts
        assert "heads" not in found.summary()
        assert found.pictures[0].maps is None
        assert found.pictures[0].saliency is not None


def test_entropy_and_what_where_are_as_their_formulas_say() -> None:
    one, flat = torch.zeros(4, 4), torch.full((4, 4), 1 / 16)
    one[1, 2] = 1
    torch.testing.assert_close(entropy(torch.stack([one, flat])), torch.tensor([0.0, np.log(16)], dtype=torch.float32))
    torch.manual_seed(0)
    logits = torch.randn(2, 4, 4)
    answers = torch.zeros(2, 1)
    found = what_where(Glimpse(answers, logits, 3 * logits, logits))
    torch.testing.assert_close(found, torch.full((2,), float(np.log(9))))
    assert torch.isfinite(what_where(Glimpse(answers, logits, logits, torch.zeros_like(logits)))).all()
    torch.testing.assert_close(shares(-flat).sum(), torch.tensor(1.0))


def test_attention_near_objects_is_counted_where_they_are() -> None:
    game = make_environment(EnvironmentConfig(name="catch"))
    frame, _ = game.reset(seed=3)
    for _ in range(4):
        frame, *_ = game.step(1)
    _, _, _, row, column, _, paddle = game.get_state()["numbers"].tolist()
    found = objects("catch", frame)
    assert set(found) == {"ball", "paddle"}
    assert found["ball"].nonzero().tolist() == [[2 * row + y, 2 * column + x] for y in (0, 1) for x in (0, 1)]
    assert found["paddle"].any(0).nonzero()[:, 0].tolist() == list(range(2 * paddle - 2, 2 * paddle + 4))
    maps = torch.zeros(2, 6, 6)
    maps[0, row // 2, column // 2] = 1
    maps[1] = 1 / 36
    facts = step_facts(Glimpse(torch.zeros(2, 1), maps, maps, maps), "catch", frame)
    assert facts.near["ball"] == [1.0, pytest.approx(facts.uniform["ball"])]
    assert facts.near["paddle"][0] == 0.0
    assert not objects("gymnasium:Some-v0", frame)


def test_the_paddle_of_pong_is_where_it_always_is() -> None:
    pytest.importorskip("ale_py")
    game = make_environment(EnvironmentConfig(name="ale:Pong"))
    frame, _ = game.reset(seed=1)
    for _ in range(20):
        frame, *_ = game.step(1)
    found = objects("ale:Pong", frame)
    assert set(found) == {"ball", "paddle", "opponent"}
    assert found["paddle"].any(0).nonzero()[:, 0].tolist() == [140, 141, 142, 143]
    assert int(found["paddle"].sum()) == 4 * 16
    assert int(found["ball"].sum()) == 2 * 4


def test_cells_and_their_neighbours() -> None:
    mask = torch.zeros(8, 6, dtype=torch.bool)
    mask[7, 0] = True
    assert cells(mask, 4, 3).nonzero().tolist() == [[3, 0]]
    assert cells(mask, 4, 3, 1).nonzero().tolist() == [[2, 0], [2, 1], [3, 0], [3, 1]]
    maps = torch.zeros(2, 2, 3)
    maps[0, 1, 2], maps[1, 0, 1] = 1.0, 0.5
    assert attended(maps, 2).nonzero().tolist() == [[0, 1], [1, 2]]


def test_attention_is_painted_where_it_is_in_the_colour_of_its_query() -> None:
    frame = np.zeros((12, 12, 3), dtype=np.uint8)
    maps = np.zeros((2, 3, 3), dtype=np.float32)
    maps[0, 0, 2], maps[1] = 1.0, 1 / 9
    found = overlay.overlaid(frame, maps)
    assert found[1, 10].tolist() == pytest.approx([0.8 * part for part in overlay.COLOURS[0]], abs=1)
    assert not found[8:, :6].any()  # a query that prefers nothing is not seen
    assert overlay.enlarged(found, 3).shape == (36, 36, 3)


def test_a_film_keeps_every_pixel_and_other_programs_read_it(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    pictures = list(overlay.video(record(excited(), 0, pictures=4), attention=True))
    assert {picture.shape for picture in pictures} == {pictures[0].shape}
    opened = image.open(io.BytesIO(animated_png(pictures)))
    assert opened.n_frames == 4
    for number, picture in enumerate(pictures):
        opened.seek(number)
        assert np.array_equal(np.asarray(opened.convert("RGB")), picture)
    write_film(iter(pictures), tmp_path / "film.gif")
    with image.open(tmp_path / "film.gif") as opened:
        assert (opened.n_frames, opened.size) == (4, pictures[0].shape[1::-1])
    with pytest.raises(ConfigError, match=r"ends in \.gif, or in \.png"):
        write_film(pictures, tmp_path / "film.mp4")


def test_rectangles_cover_exactly_their_pixels() -> None:
    rng = np.random.default_rng(0)
    codes = rng.integers(3, size=(9, 7))
    painted = np.zeros((9, 7), dtype=int)
    for code, path in pixels.rectangles(codes).items():
        for found in re.finditer(r"M(\d+) (\d+)h(\d+)v(\d+)h-(\d+)z", path):
            x, y, width, height, back = map(int, found.groups())
            assert width == back
            painted[y : y + height, x : x + width] += code + 1
    assert np.array_equal(painted, codes + 1)


def test_a_frame_of_many_colours_is_drawn_coarser() -> None:
    noise = np.random.default_rng(0).integers(256, size=(128, 160, 3), dtype=np.uint8)
    assert 'viewBox="0 0 80 64"' in pixels.defined(noise, "noise")


@pytest.mark.full
def test_a_page_shows_everything_and_loads_nothing() -> None:
    player = excited()
    found = [record(player, number, with_saliency=number == 0) for number in range(2)]
    html = play_page("<b>mine</b>", player, found)
    assert "<b>mine" not in html
    assert not re.search(r"(src|href)=\"(?!#)", html)
    assert "url(" not in html
    for said in ("Near the ball", "Led by what or where", "saliency and attention correlate", "episode 1", "query 4"):
        assert said in html
    for name in set(re.findall(r'href="#([^"]+)"', html)):
        assert f'<symbol id="{name}"' in html
    bare = excited(core="lstm")
    assert "query" not in play_page("mine", bare, [record(bare, 0)])


def test_only_run_folders_say_what_to_play(tmp_path: Path) -> None:
    excited().model.write_folder(tmp_path)
    with pytest.raises(ConfigError, match="give a run folder"):
        open_player(tmp_path)
