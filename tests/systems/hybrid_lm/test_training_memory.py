"""The estimate of training memory against what tensors really took, each training in a process of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import micro_runs
from soak import SOAKING

PROGRAM = """
import json, sys
from dataclasses import replace
from pathlib import Path
import torch
import torch._dynamo
import micro_runs
from seqloom.data.config import SourceConfig
from seqloom.systems.hybrid_lm.recipes import tiny
from seqloom.train.loop import train
from seqloom.train.observer import Observer

class Quiet(Observer):
    def on_message(self, text):
        pass

def kilobytes(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))

texts, folder, changes = Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3])
torch.set_num_threads(1)
train(micro_runs.narrow(texts)(), folder / "warm", Quiet())  # whatever is loaded when first used
run = tiny()
data = replace(run.task.data, sources=(SourceConfig(path=str(texts)),), valid_fraction=0.2)
task = replace(run.task, data=data, evaluate_rows=2, **changes.get("task", {}))
settings = {"steps": 2, "save_every": 1, "evaluate_every": 2, **changes.get("train", {})}
precision = replace(run.precision, activations="fp32")
run = replace(run, task=task, train=replace(run.train, **settings), precision=precision)
run.task.build(run, torch.device("cpu"))
Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
before = kilobytes("VmRSS:")
train(run, folder / "run", Quiet())
print(json.dumps([run.model.training_bytes(run), (kilobytes("VmHWM:") - before) * 1024]))
"""

SETTINGS = {
    "whole batch": {},
    "accumulated, recomputed, saved in the background": {
        "task": {"micro_rows": 2},
        "train": {"activation_checkpointing": True, "async_save": True},
    },
}
ONE_BY_ONE = {
    "accumulated": {"task": {"micro_rows": 2}},
    "recomputed": {"train": {"activation_checkpointing": True}},
    "saved in the background": {"train": {"async_save": True}},
}
if SOAKING:
    SETTINGS |= ONE_BY_ONE


@pytest.mark.full
@pytest.mark.timeout(300)
@pytest.mark.skipif(sys.platform != "linux", reason="reads peaks from /proc")
@pytest.mark.parametrize("setting", SETTINGS)
def test_the_estimate_is_what_tensors_take(setting: str, tmp_path: Path) -> None:
    """With a map of its own for each larger tensor, so that what is resident is what tensors take."""
    texts = micro_runs.write_texts(tmp_path / "texts", files=400)
    tests = str(Path(__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(texts), str(tmp_path), json.dumps(SETTINGS[setting])],
        env={**os.environ, "PYTHONPATH": tests, "OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": "65536"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    estimated, measured = json.loads(done.stdout.splitlines()[-1])
    assert estimated == pytest.approx(measured, rel=0.15)
