"""Two commits beside one another; the older one is this one, so that it is sure to be there."""

import json
import shutil
import subprocess
from argparse import Namespace
from pathlib import Path

import pytest

from benchmarks.__main__ import main
from benchmarks.base import beside_base, exported, refuse_other_outcome
from benchmarks.case import Disagreement, NotHere
from benchmarks.child import ROOT, ChildFailed, call

needs_git = pytest.mark.skipif(
    shutil.which("git") is None or subprocess.run(["git", "rev-parse"], cwd=ROOT, capture_output=True).returncode != 0,
    reason="needs git and the history",
)


@needs_git
def test_an_export_holds_the_package_then_and_the_benchmarks_now() -> None:
    with exported("HEAD") as (folder, commit):
        assert len(commit) == 40
        assert (folder / "seqloom" / "__init__.py").exists()
        assert (folder / "benchmarks" / "base.py").read_bytes() == (ROOT / "benchmarks" / "base.py").read_bytes()
        assert call("benchmarks.child", "where", cwd=folder) == str(folder / "seqloom")
    with pytest.raises(NotHere, match="git knows no commit 'nowhere'"), exported("nowhere"):
        pass


def test_other_outcomes_are_not_compared() -> None:
    assert refuse_other_outcome(2.0, 2.01, "v1") == {"here": 2.0, "base": 2.01}
    assert refuse_other_outcome(2.0, None, "v1") == {}
    with pytest.raises(Disagreement, match=r"2\.0 here and 2\.1 at v1"):
        refuse_other_outcome(2.0, 2.1, "v1")


def test_a_child_that_fails_says_why() -> None:
    with pytest.raises(ChildFailed, match="has no attribute 'nothing'"):
        call("benchmarks.child", "nothing")


@needs_git
def test_sides_take_turns_at_being_first(monkeypatch: pytest.MonkeyPatch) -> None:
    here = []

    def in_process(case: str, options: dict[str, object], home: Path) -> dict[str, object]:
        here.append(home == ROOT)
        return {"outcome": 2.0, "bytes": {"ours": 3 if home == ROOT else 6}}

    monkeypatch.setattr("benchmarks.base._in_process", in_process)
    facts = beside_base("a case", Namespace(base="HEAD", rounds=3))
    assert here == [False, True, True, False, False, True]
    assert set(facts["bytes_ratio"]["base"]) == {2.0}


@pytest.mark.full
@needs_git
def test_an_area_against_a_commit(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    arguments = ["--threads", "1", "--repeats", "1", "--rounds", "1", "--rows", "1", "--length", "32"]
    assert main(["train", "--only", "toy-fp32", "--base", "HEAD", *arguments]) == 0
    (line,) = map(json.loads, capsys.readouterr().out.splitlines())
    assert line["gate"]["here"] == pytest.approx(line["gate"]["base"], rel=0.01)
    assert line["seconds"].keys() == {"ours", "base"}
    assert len(line["base"]) == 40
