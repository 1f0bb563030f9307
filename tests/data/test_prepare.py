"""The whole walk from names to rows."""

import json
import lzma
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from sample_texts import CODE, PROSE

from seqloom.core.errors import ConfigError, DataError
from seqloom.data.config import DataConfig, PhaseConfig, SourceConfig
from seqloom.data.prepare import Prepared, prepare
from seqloom.data.rows import NO_TARGET


def build(*paths: str | Path, stages: list[str] | None = None, **settings: Any) -> Prepared:
    sizes = {"vocab_size": 350, "sequence_length": 32, "rows_total": 100, "seed": 0}
    sizes |= {name: settings.pop(name) for name in list(settings) if name in sizes}
    sources = tuple(SourceConfig(path=str(path)) for path in paths)
    told = [] if stages is None else stages
    return prepare(
        DataConfig(**{"sources": sources, **settings}), progress=lambda stage, share: told.append(stage), **sizes
    )


@pytest.fixture
def code(tmp_path: Path) -> Path:
    folder = tmp_path / "code"
    folder.mkdir()
    for number in range(30):
        (folder / f"{number:02}.py").write_text(f"# module {number}\n{CODE * (number % 7 + 1)}")
    return folder


def test_rows_hold_the_text(stories: Path, code: Path) -> None:
    made = build(stories, code)
    rows = made.every.rows(range(len(made.every)))
    shown = made.tokenizer.decode(rows.tokens[rows.documents >= 0].tolist())
    for line in stories.read_text().splitlines():
        assert json.loads(line)["text"] in shown
    for path in code.iterdir():
        assert path.read_text() in shown
    assert int((rows.targets != NO_TARGET).sum()) > 0.8 * rows.tokens.numel()


def test_held_back_text_is_never_trained_on(stories: Path) -> None:
    made = build(stories, valid_fraction=0.2)
    train = made.train.rows(range(len(made.train)))
    valid = made.valid.rows(range(len(made.valid)))
    seen = made.tokenizer.decode(train.tokens.flatten().tolist(), specials=True)
    held_back = made.tokenizer.decode(valid.tokens[valid.documents >= 0].tolist(), specials=True).split("</s>")[:-1]
    assert len(held_back) > 10
    assert not [text for text in held_back if f"{text}</s>" in seen]
    assert len(made.valid) + len(made.train) <= len(made.every) + 1


def test_a_second_run_starts_at_once_and_is_the_same(stories: Path, code: Path) -> None:
    first_stages: list[str] = []
    second_stages: list[str] = []
    first = build(stories, code, stages=first_stages)
    second = build(stories, code, stages=second_stages)
    assert {stage.split()[0] for stage in first_stages} == {"reading", "training", "encoding"}
    assert second_stages == []
    assert second.fingerprint == first.fingerprint
    assert second.report == first.report
    for ours, theirs in zip(first.train.rows(range(50)), second.train.rows(range(50)), strict=True):
        assert torch.equal(ours, theirs)


def test_a_fresh_cache_gives_the_same_rows(stories: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = build(stories)
    monkeypatch.setenv("SEQLOOM_CACHE", str(tmp_path / "other"))
    assert build(stories).fingerprint == first.fingerprint


def test_a_damaged_cache_is_made_again(stories: Path, cache: Path) -> None:
    first = build(stories)
    for pattern in ("tokens/*/content/train-00000.bin", "tokenizers/*/content/tokenizer_config.json"):
        (path,) = cache.glob(pattern)
        path.write_bytes(path.read_bytes()[:-7])
        stages: list[str] = []
        assert build(stories, stages=stages).fingerprint == first.fingerprint
        assert stages


def test_a_changed_file_is_read_again(stories: Path) -> None:
    first = build(stories)
    with stories.open("a") as file:
        file.write(json.dumps({"text": PROSE * 40}) + "\n")
    assert build(stories).fingerprint != first.fingerprint
    assert build(stories).report["sources"][0]["documents"] == 201


@pytest.mark.parametrize("change", [{"seed": 1}, {"sequence_length": 33}, {"vocab_size": 340}, {"valid_fraction": 0.3}])
def test_the_fingerprint_follows_what_decides_the_rows(change: dict[str, Any], stories: Path) -> None:
    assert build(stories, **change).fingerprint != build(stories).fingerprint


def test_the_fingerprint_of_an_unphased_run_does_not_depend_on_its_length(stories: Path, code: Path) -> None:
    phases = (PhaseConfig(start=0.5, weights=(1, 0)),)
    assert build(stories, rows_total=10).fingerprint == build(stories, rows_total=90).fingerprint
    assert (
        build(stories, code, phases=phases, rows_total=10).fingerprint
        != build(stories, code, phases=phases, rows_total=90).fingerprint
    )


def test_moved_and_touched_data_keeps_its_fingerprint(stories: Path, tmp_path: Path) -> None:
    first = build(stories)
    os.utime(stories, (1, 1))
    assert build(stories).fingerprint == first.fingerprint
    (tmp_path / "moved").mkdir()
    assert build(stories.rename(tmp_path / "moved" / "s.jsonl")).fingerprint == first.fingerprint


def test_weights_and_phases_decide_the_shares(stories: Path, code: Path) -> None:
    sources = (SourceConfig(path=str(stories), weight=3), SourceConfig(path=str(code)))
    phases = (PhaseConfig(start=0.5, weights=(0, 1)),)
    report = build(sources=sources, phases=phases, rows_total=2000).report["sources"]
    assert [round(source["share"], 2) for source in report] == pytest.approx([0.375, 0.625], abs=0.03)
    assert sum(source["rows_drawn"] for source in report) == 2000


def test_too_many_repeats_are_refused_on_demand(stories: Path) -> None:
    rows = len(build(stories).train)
    assert build(stories, rows_total=3 * rows).report["sources"][0]["repeats"] == 3
    build(stories, rows_total=3 * rows, max_repeats=3)
    with pytest.raises(
        ConfigError, match=r"task.data.max_repeats: .*stories.jsonl has \d+ rows .* 3.0 times, more than 2.5"
    ):
        build(stories, rows_total=3 * rows, max_repeats=2.5)


def test_an_existing_tokenizer_must_fit_the_model(stories: Path, tmp_path: Path) -> None:
    build(stories).tokenizer.save(tmp_path)
    made = build(stories, tokenizer=str(tmp_path))
    assert made.fingerprint == build(stories).fingerprint
    with pytest.raises(DataError, match=r"has 350 entries, but the model's vocab_size is 349; raise model.vocab_size"):
        build(stories, tokenizer=str(tmp_path), vocab_size=349)


def test_a_corpus_too_small_for_the_vocabulary_and_for_a_row(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("tiny")
    made = build(tmp_path / "a.txt", vocab_size=5000)
    assert made.tokenizer.size < 300
    assert len(made.train) == len(made.valid) == 1
    rows = made.train.rows([0, 1, 2])
    assert torch.equal(rows.tokens[0], rows.tokens[2])
    assert (rows.targets != NO_TARGET).any()


def test_unreadable_records_stop_before_any_work(stories: Path) -> None:
    with stories.open("a") as file:
        file.write("{broken\n" * 3)
    assert build(stories, bad_line_limit=3).report["sources"][0]["skipped"] == {"not JSON": 3}
    stages: list[str] = []
    with pytest.raises(DataError, match=r"more than 2 unreadable records .*\n.*stories.jsonl:201: not valid JSON"):
        build(stories, bad_line_limit=2, stages=stages)
    assert not [stage for stage in stages if stage.startswith("encoding")]


def test_the_text_field_and_compression(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.xz"
    path.write_bytes(lzma.compress("\n".join(json.dumps({"body": PROSE * n}) for n in range(1, 9)).encode()))
    assert build(path, text_field="body").report["sources"][0]["documents"] == 8
    with pytest.raises(DataError, match="no field 'text'; keys here: body"):
        build(path)
