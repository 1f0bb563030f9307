"""One argument for recipes, files and folders, and settings by their dotted paths."""

from pathlib import Path

import pytest

from seqloom.cli.runs import find_run, read_sources, with_sources
from seqloom.core.config import to_yaml
from seqloom.core.errors import ConfigError
from seqloom.core.rooms import recipe


def test_recipe_file_and_folder_are_the_same_kind_of_argument(tmp_path: Path) -> None:
    run = recipe("hybrid_lm/tiny")
    (tmp_path / "run.yaml").write_text(to_yaml(run), encoding="utf-8")
    assert find_run("hybrid_lm/tiny") == (run, None)
    assert find_run(str(tmp_path / "run.yaml")) == (run, None)
    assert find_run(str(tmp_path)) == (run, tmp_path)


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("hybrid_lm/tinny", "neither a recipe nor a file nor a folder here; did you mean 'tiny'?"),
        ("{folder}", "{folder}: not a run folder (it has no run.yaml)"),
        ("{folder}/typo.yaml", "{folder}/typo.yaml: train.stepz: unknown setting; did you mean 'steps'?"),
        ("{folder}/list.yaml", "{folder}/list.yaml: expected a mapping of settings, found list"),
        ("{folder}/foreign.yaml", "unknown system 'speech'; known: attention_agent, deep_speech2, hybrid_lm"),
        ("{folder}/nameless.yaml", "{folder}/nameless.yaml: system: this setting is required"),
    ],
)
def test_what_cannot_be_trained_is_named(what: str, said: str, tmp_path: Path) -> None:
    text = to_yaml(recipe("hybrid_lm/tiny"))
    for name, content in {
        "typo": text.replace("steps:", "stepz:", 1),
        "list": "- 1\n",
        "foreign": "system: speech\n",
        "nameless": text.replace("system: hybrid_lm\n", ""),
    }.items():
        (tmp_path / f"{name}.yaml").write_text(content, encoding="utf-8")
    with pytest.raises(ConfigError) as error:
        find_run(what.format(folder=tmp_path))
    assert said.format(folder=tmp_path) in str(error.value)


def test_sources_may_carry_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("odd=2").touch()
    found = [(source.path, source.weight) for source in read_sources([["a", "b=0.25"], ["hf:x:y=3", "odd=2"]])]
    assert found == [("a", 1.0), ("b", 0.25), ("hf:x:y", 3.0), ("odd=2", 1.0)]


def test_a_weight_must_be_a_number() -> None:
    with pytest.raises(ConfigError, match="'much' is not a weight; write PATH=WEIGHT"):
        read_sources([["a=much"]])


def test_a_system_without_corpora_says_so() -> None:
    with pytest.raises(ConfigError, match=r"--data: .catch. learns from no corpora"):
        with_sources(recipe("attention_agent/catch"), read_sources([["texts"]]))
