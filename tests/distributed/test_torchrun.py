"""The command as a user types it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from seqloom.core.config import to_yaml
from seqloom.systems.hybrid_lm.config import Run
from soak import SOAKING


def torchrun(*arguments: str) -> subprocess.CompletedProcess[str]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "seqloom", "train"]
    return subprocess.run([*launcher, *arguments], capture_output=True, text=True, timeout=100)


@pytest.fixture
def run_file(run: Run, tmp_path: Path) -> str:
    path = tmp_path / "run.yaml"
    path.write_text(to_yaml(run), encoding="utf-8")
    return str(path)


@pytest.mark.full
def test_one_process_speaks_for_all(run_file: str, tmp_path: Path) -> None:
    ended = torchrun(run_file, "--out", str(tmp_path / "run"), "--train.parallel.expert", "2", "--json")
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout)["step"] == 3
    assert ended.stderr.count("trained for 3 steps") == 1
    assert ended.stderr.count("step 3/3") == 1


@pytest.mark.skipif(not SOAKING, reason="three more processes to import everything: run by `make soak`")
def test_a_mistake_is_told_once(run_file: str, tmp_path: Path) -> None:
    ended = torchrun(run_file, "--out", str(tmp_path / "run"), "--task.batch-rows", "3")
    assert ended.returncode != 0
    assert ended.stderr.count("task.batch_rows = 3 is not divisible by train.parallel.data = 2") == 1
    assert not (tmp_path / "run").exists()
