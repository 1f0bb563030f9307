"""Small corpora and a cache for each test."""

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from sample_texts import CODE, PROSE

from seqloom.data.tokenizer import TextTokenizer, train_tokenizer


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SEQLOOM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="session")
def tokenizer() -> TextTokenizer:
    return train_tokenizer([(CODE + PROSE) * 20], 400)


@pytest.fixture
def write_lines(tmp_path: Path) -> Callable[..., Path]:
    """Writes JSON lines; every argument is an object, or a string that is taken as it is."""

    def write(name: str, *records: object) -> Path:
        path = tmp_path / name
        lines = [record if isinstance(record, str) else json.dumps(record) for record in records]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return path

    return write


@pytest.fixture
def stories(tmp_path: Path) -> Path:
    """200 different documents of different lengths."""
    choose = random.Random(7)
    words = (CODE + PROSE).split(" ")
    path = tmp_path / "stories.jsonl"
    texts = [" ".join(choose.choices(words, k=choose.randint(3, 120))) for _ in range(200)]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return path
