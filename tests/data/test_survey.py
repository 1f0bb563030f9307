"""The first pass: counts, a sample, and who is held back."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from seqloom.core.errors import DataError
from seqloom.data.sources import open_source
from seqloom.data.survey import SNIPPET_CHARS, Sample, Survey, survey, text_hash


def look(path: Path, sample_bytes: int = 0, limit: int = 100) -> Survey:
    return survey(open_source(str(path), "text"), limit, sample_bytes, lambda stage, share: None)


def test_it_counts_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("naïve")
    (tmp_path / "b.txt").write_text("the longest of them\n" * 10_000)
    (tmp_path / "c.txt").touch()
    found = look(tmp_path)
    assert found.n_bytes == 200_006
    assert found.facts == {
        "documents": 2,
        "longest": {"bytes": 200_000, "origin": str(tmp_path / "b.txt")},
        "skipped": {"empty": 1},
        "skipped_examples": [],
    }


def test_progress_ends_at_one(stories: Path) -> None:
    told: list[tuple[str, float]] = []
    survey(open_source(str(stories), "text"), 0, 0, lambda stage, share: told.append((stage, share)))
    assert told[-1] == (f"reading {stories}", 1.0)
    assert all(0 <= share <= 1 for _, share in told)


def test_a_source_without_text_says_why(write_lines: Callable[..., Path], tmp_path: Path) -> None:
    path = write_lines("a.jsonl", {"body": "x"}, {"text": " "}, "nonsense")
    with pytest.raises(DataError) as error:
        look(path)
    assert f"{path}: no text in it that can be used (1 empty, 1 no field 'text', 1 not JSON)" in str(error.value)
    assert f"{path}:1: no field 'text'; keys here: body" in str(error.value)
    (tmp_path / "a.bin").write_bytes(b"\x7fELF\0")
    with pytest.raises(DataError, match=r"a.bin: a binary file \(zero byte at offset 4\)"):
        look(tmp_path / "a.bin")


def test_the_longest_document_trains_and_another_is_held_back(write_lines: Callable[..., Path]) -> None:
    found = look(write_lines("a.jsonl", *({"text": "x" * length} for length in (3, 9, 4, 5))))
    for fraction in (1e-9, 0.49):
        held_back = [found.held_back(text_hash("x" * length), fraction) for length in (3, 9, 4, 5)]
        assert any(held_back)
        assert not held_back[1]


def test_about_the_wanted_share_is_held_back_whatever_the_order(stories: Path, tmp_path: Path) -> None:
    lines = stories.read_text().splitlines()
    backwards = tmp_path / "backwards.jsonl"
    backwards.write_text("\n".join(reversed(lines)))
    hashes = [text_hash(json.loads(line)["text"]) for line in lines]
    surveys = [look(path) for path in (stories, backwards)]
    sides = [[one.held_back(found, 0.2) for found in hashes] for one in surveys]
    assert sides[0] == sides[1]
    assert 20 <= sum(sides[0]) <= 60


def test_the_sample_is_bounded_even_and_independent_of_order(stories: Path) -> None:
    texts = [f"{number} " * 40 for number in range(1000)]
    drawn = []
    for order in (texts, texts[::-1]):
        sample = Sample(20_000)
        for text in order:
            sample.offer(text)
        drawn.append(sample.texts())
    assert drawn[0] == drawn[1]
    assert 19_000 <= sum(map(len, drawn[0])) <= 20_000
    numbers = [int(text.split()[0]) for text in drawn[0]]
    assert 400 < sum(numbers) / len(numbers) < 600
    assert look(stories, sample_bytes=0).sample == []


def test_a_long_text_is_sampled_in_snippets() -> None:
    sample = Sample(3 * SNIPPET_CHARS)
    text = "".join(f"{number:08}" for number in range(4 * SNIPPET_CHARS))
    sample.offer(text)
    assert len(sample.texts()) == 3
    assert all(snippet in text for snippet in sample.texts())
