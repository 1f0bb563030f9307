"""One small training for all verbs that need a trained model."""

import contextlib
import io
from pathlib import Path

import pytest

from micro_runs import Trained, narrow, write_texts
from seqloom.cli.main import main
from seqloom.systems.hybrid_lm import recipes


@pytest.fixture(scope="session")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_texts(tmp_path_factory.mktemp("data") / "texts")


@pytest.fixture
def small_recipe(texts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`hybrid_lm/tiny` is a narrow model on small texts."""
    monkeypatch.setitem(recipes.RECIPES, "tiny", narrow(texts))


@pytest.fixture(scope="session")
def trained(texts: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A run of three steps, saved at each, with its output piped."""
    folder, output = tmp_path_factory.mktemp("runs") / "small", io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(output):
        patch.setitem(recipes.RECIPES, "tiny", narrow(texts))
        main(["train", "hybrid_lm/tiny", "--out", str(folder), "--train.save-every", "1"])
    return Trained(folder, output.getvalue().splitlines())
