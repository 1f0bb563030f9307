"""A run folder keeps a whole checkpoint through kills, failing disks and damaged files, and says what is wrong."""

import errno
import itertools
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from seqloom.core.checkpoint.run_folder import RunFolder
from seqloom.core.errors import CheckpointError

FailingDisk = Callable[[int | None, int, bool], AbstractContextManager[list[tuple[Any, ...]]]]

MODEL = ("config.json", "model.safetensors")
TRAINING = ("optim-00001.safetensors", "rng.safetensors", "state.json")


def _write(text: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        for name in (*MODEL, *TRAINING):
            (folder / name).write_text(f"{name} {text}")

    return write


def _text(folder: Path) -> str:
    """What was written into a checkpoint; all its files must agree."""
    texts = {(folder / name).read_text().removeprefix(f"{name} ") for name in (*MODEL, *TRAINING)}
    assert len(texts) == 1
    return texts.pop()


def _refuse(line: str) -> None:
    raise AssertionError(f"unexpected damage: {line}")


def _opened(path: Path) -> tuple[int, str]:
    found = RunFolder(path).open_latest(_refuse)
    assert found is not None
    return found[0], _text(found[1])


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """A run with checkpoints of steps 100 and 200."""
    run = RunFolder(tmp_path / "runs" / "tiny")
    with run.lock():
        run.save(100, _write("a"), keep=2)
        run.save(200, _write("b"), keep=2)
    return run


def test_creating_the_object_touches_nothing(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    assert run.steps() == []
    assert run.open_latest() is None
    assert os.listdir(tmp_path) == []


def test_the_newest_step_is_opened(run: RunFolder) -> None:
    assert run.steps() == [100, 200]
    assert _opened(run.path) == (200, "b")
    assert run.metrics_path == run.path / "metrics.jsonl"


def test_the_top_of_the_folder_is_a_model_folder(run: RunFolder) -> None:
    assert sorted(os.listdir(run.path)) == sorted([".lock", "latest", "steps", *MODEL])
    for name in MODEL:
        assert os.readlink(run.path / name) == f"latest/{name}"
        assert (run.path / name).read_text() == f"{name} b"
    assert os.readlink(run.path / "latest") == "steps/00000200"


def test_a_moved_folder_is_the_same_run(run: RunFolder, tmp_path: Path) -> None:
    shutil.move(run.path, tmp_path / "elsewhere")
    assert _opened(tmp_path / "elsewhere") == (200, "b")
    assert (tmp_path / "elsewhere" / "config.json").read_text() == "config.json b"


def test_the_top_follows_the_files_of_the_newest_step(run: RunFolder) -> None:
    (run.path / "notes.txt").write_text("mine")
    os.symlink("notes.txt", run.path / "my_link")

    def write(folder: Path) -> None:
        (folder / "config.json").write_text("{}")
        (folder / "model-00001-of-00002.safetensors").write_text("1")

    with run.lock():
        run.write_top("run.yaml", "seed: 1\n")
        run.save(300, write, keep=2)
    expected = [".lock", "latest", "steps", "config.json", "model-00001-of-00002.safetensors"]
    assert sorted(os.listdir(run.path)) == sorted([*expected, "run.yaml", "notes.txt", "my_link"])


def test_a_file_written_at_the_top_gives_way_to_the_link_of_the_same_name(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    with run.lock():
        run.write_top("run.yaml", "seed: 1\n")
        assert (tmp_path / "run.yaml").read_text() == "seed: 1\n"
        run.save(1, lambda folder: (folder / "run.yaml").write_text("seed: 2\n"), keep=2)
        assert os.readlink(tmp_path / "run.yaml") == "latest/run.yaml"
        run.write_top("run.yaml", "seed: 3\n")
    assert (tmp_path / "steps" / "00000001" / "run.yaml").read_text() == "seed: 2\n"


# ---------------------------------------------------------------------------------------------- which steps are kept


def test_the_newest_steps_are_kept(run: RunFolder) -> None:
    with run.lock():
        run.save(300, _write("300"), keep=5)
        assert run.steps() == [100, 200, 300]
        for step in (400, 500):
            run.save(step, _write(str(step)), keep=3)
        assert run.steps() == [300, 400, 500]
        run.save(600, _write("600"), keep=1)
    assert run.steps() == [600]
    assert os.listdir(run.path / "steps") == ["00000600"]


def test_a_damaged_step_does_not_count_as_kept(run: RunFolder) -> None:
    with run.lock():
        run.save(300, _write("c"), keep=3)
        (run.path / "steps" / "00000300" / "state.json").unlink()
        assert run.open_latest(lambda line: None) == (200, run.path / "steps" / "00000200")
        run.save(400, _write("d"), keep=2)
        assert run.steps() == [200, 400]


def test_steps_of_a_course_that_was_left_go(run: RunFolder) -> None:
    (run.path / "steps" / "00000200" / "config.json").write_text("x")
    with run.lock():
        assert run.open_latest(lambda line: None) == (100, run.path / "steps" / "00000100")
        run.save(150, _write("c"), keep=2)
    assert run.steps() == [100, 150]
    assert _opened(run.path) == (150, "c")


def test_a_step_can_be_saved_again(run: RunFolder) -> None:
    with run.lock():
        run.save(200, _write("again"), keep=2)
    assert run.steps() == [100, 200]
    assert _opened(run.path) == (200, "again")


# ------------------------------------------------------------------------------------------------------------- damage


@pytest.mark.parametrize("name", [*MODEL, *TRAINING, "manifest.json"])
def test_damage_to_any_file_is_named_and_the_older_step_used(name: str, run: RunFolder) -> None:
    path = run.path / "steps" / "00000200" / name
    whole = path.read_bytes()
    flipped = whole[:7] + bytes([whole[7] ^ 4]) + whole[8:]
    for damage in (None, b"", whole[:-1], flipped):
        path.unlink() if damage is None else path.write_bytes(damage)
        lines: list[str] = []
        assert run.open_latest(lines.append) == (100, run.path / "steps" / "00000100")
        assert len(lines) == 1
        assert lines[0].startswith(f"step 200: {name}: ")
        assert lines[0].endswith("; using step 100")
        path.write_bytes(whole)
    assert _opened(run.path) == (200, "b")


def test_the_report_reads_like_this(run: RunFolder) -> None:
    (run.path / "steps" / "00000200" / "config.json").write_text("config.json c")
    with pytest.warns(UserWarning, match=r"^step 200: config\.json: digest differs; using step 100$"):
        run.open_latest()


def test_when_nothing_is_whole_all_damage_is_named(run: RunFolder) -> None:
    (run.path / "steps" / "00000200" / "config.json").write_text("x")
    (run.path / "steps" / "00000100" / "manifest.json").unlink()
    with pytest.raises(CheckpointError) as caught:
        run.open_latest(_refuse)
    for part in (str(run.path), "step 200: config.json: 1 bytes long", "step 100: manifest.json: missing"):
        assert part in str(caught.value)


def test_a_missing_step_that_latest_names_is_damage(run: RunFolder) -> None:
    shutil.rmtree(run.path / "steps" / "00000200")
    lines: list[str] = []
    assert run.open_latest(lines.append) == (100, run.path / "steps" / "00000100")
    assert lines == ["step 200: the folder is missing; using step 100"]
    shutil.rmtree(run.path / "steps")
    with pytest.raises(CheckpointError, match="step 200: the folder is missing"):  # never a silent start from nothing
        run.open_latest(_refuse)


def test_the_writer_points_the_top_to_what_is_whole(run: RunFolder) -> None:
    (run.path / "steps" / "00000200" / "config.json").write_text("x")
    run.open_latest(lambda line: None)
    assert os.readlink(run.path / "latest") == "steps/00000200"  # a reader changes nothing
    with run.lock():
        run.open_latest(lambda line: None)
    assert (run.path / "config.json").read_text() == "config.json a"


def test_links_that_a_dead_writer_did_not_make_are_made(run: RunFolder) -> None:
    for name in ("latest", "config.json"):
        os.unlink(run.path / name)
    with run.lock():
        assert run.open_latest(_refuse) == (200, run.path / "steps" / "00000200")
    assert (run.path / "config.json").read_text() == "config.json b"


# ------------------------------------------------------------------------------------------------ who may write where


def test_a_second_writer_is_refused(run: RunFolder) -> None:
    with (
        run.lock(),
        pytest.raises(CheckpointError, match=f"in use by process {os.getpid()} on"),
        RunFolder(run.path).lock(),
    ):
        pass
    with pytest.raises(AssertionError, match="holder of its lock"):
        run.save(300, _write("c"), keep=2)


def test_leftovers_of_a_dead_writer_go(run: RunFolder) -> None:
    for parent in (run.path, run.path / "steps"):
        (parent / ".00000300.seqloom-tmp").mkdir()
        (parent / ".00000300.seqloom-tmp" / "model.safetensors").write_text("half")
    assert run.steps() == [100, 200]
    with run.lock():
        assert sorted(os.listdir(run.path / "steps")) == ["00000100", "00000200"]
        assert sorted(os.listdir(run.path)) == sorted([".lock", "latest", "steps", *MODEL])


def test_a_model_that_no_run_made_is_not_written_over(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="holds a model of its own"), RunFolder(tmp_path).lock():
        pass
    assert os.listdir(tmp_path) == ["config.json"]


def test_a_path_that_cannot_be_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for path in (tmp_path / "file", tmp_path / "file" / "run", Path("/proc/run")):
        with pytest.raises(CheckpointError, match=rf"{path}: cannot be used for a run: "), RunFolder(path).lock():
            pass


def test_a_disk_that_refuses_does_so_before_training(run: RunFolder, failing_disk: FailingDisk) -> None:
    with failing_disk(None, 0, False) as called, run.lock():
        effects = len(called)
    assert {effect[0] for effect in called} >= {"open", "write", "fsync", "mkdir", "replace", "symlink", "unlink"}
    for number in range(effects):
        refused = pytest.raises(CheckpointError, match="cannot be used for a run: Read-only file system")
        with failing_disk(number, errno.EROFS, True), refused, run.lock():
            pass
    assert _opened(run.path) == (200, "b")


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write everywhere")
def test_a_read_only_folder_is_refused(run: RunFolder) -> None:
    (run.path / "steps").chmod(0o555)
    try:
        with pytest.raises(CheckpointError, match="cannot be used for a run: Permission denied"), run.lock():
            pass
    finally:
        (run.path / "steps").chmod(0o755)


# ----------------------------------------------------------------------------------------------- failing disk, killed


@pytest.mark.parametrize(("step", "lasting"), [(300, False), (200, True)])
def test_earlier_steps_survive_whatever_fails(
    step: int, lasting: bool, run: RunFolder, tmp_path: Path, failing_disk: FailingDisk
) -> None:
    shutil.move(run.path, tmp_path / "start")
    reasons = (errno.EIO, errno.ENOSPC, errno.EACCES)
    number, finished = 0, False
    while not finished:
        shutil.copytree(tmp_path / "start", run.path, symlinks=True)
        message = ""
        with run.lock(), failing_disk(number, reasons[number % 3], lasting) as called:
            try:
                run.save(step, _write("new"), keep=2)
            except CheckpointError as error:
                message = str(error)
        finished = len(called) <= number
        assert not message or f"step {step} could not be saved" in message
        before, after = (200, "b"), (step, "new")
        with run.lock():
            found = _opened(run.path)
            assert found in ((before, after) if message else (after,))
            assert found[0] == 300 or 100 in run.steps()
            run.save(400, _write("later"), keep=2)
        assert _opened(run.path) == (400, "later")
        assert sorted(os.listdir(run.path)) == sorted([".lock", "latest", "steps", *MODEL])
        assert len(os.listdir(run.path / "steps")) == 2
        shutil.rmtree(run.path)
        number += 1
    assert number > 30


def test_the_disk_has_each_step_before_the_next_one_counts_on_it(run: RunFolder, failing_disk: FailingDisk) -> None:
    run.metrics_path.write_text('{"step": 300}\n')
    with run.lock(), failing_disk(None, 0, False) as called:
        run.save(300, _write("c"), keep=2)
    order: list[str] = []
    for before, effect in itertools.pairwise([("", ""), *called]):
        if effect[0] == "fsync":
            order.append(f"sync {Path(before[1]).relative_to(run.path)}")
        if effect[0] == "replace":
            order.append(f"{Path(effect[1]).name} becomes {Path(effect[2]).relative_to(run.path)}")
    moments = [
        "sync metrics.jsonl",
        "sync .",
        "sync steps/.00000300.seqloom-tmp/manifest.json",
        "sync steps/.00000300.seqloom-tmp/model.safetensors",
        "sync steps/.00000300.seqloom-tmp",
        ".00000300.seqloom-tmp becomes steps/00000300",
        "sync steps",
        ".latest.seqloom-tmp becomes latest",
        "sync .",
        "00000100 becomes steps/.00000100.seqloom-tmp",
        "sync steps",
    ]
    place = -1
    for moment in moments:
        place = order.index(moment, place + 1)


SAVE_LOOP = """
import sys
from pathlib import Path
from seqloom.core.checkpoint.run_folder import RunFolder

def write(folder, step):
    for name in ("config.json", "model.safetensors", "optim.safetensors", "rng.safetensors", "state.json"):
        (folder / name).write_bytes(f"{name} {step} ".encode() * 3000)

def refuse(line):
    sys.exit(line)

run = RunFolder(sys.argv[1])
with run.lock():
    found = run.open_latest(refuse)
    step = found[0] if found else 0
    print(step, flush=True)
    while True:
        step += 1
        run.save(step, lambda folder: write(folder, step), keep=2)
        print(step, flush=True)
"""


def test_a_killed_writer_loses_no_step_it_had_finished(tmp_path: Path) -> None:
    draw = random.Random(0)
    run = RunFolder(tmp_path / "run")
    last = 0
    for _ in range(8):
        with subprocess.Popen(
            [sys.executable, "-c", SAVE_LOOP, str(run.path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout is not None
            lines = [process.stdout.readline() for _ in range(draw.randint(1, 4))]
            time.sleep(draw.uniform(0.0, 0.03))
            process.kill()
            rest, errors = process.communicate()
        assert errors == ""
        assert int(lines[0]) in (last, last + 1)
        last = int([*lines, *rest.split()][-1])
        found = run.open_latest(_refuse)
        step = found[0] if found else 0
        assert step in (last, last + 1)
        assert run.steps()[-2:] in ([step - 1, step], [1], [])
        if found:
            expected = f"model.safetensors {step} ".encode() * 3000
            assert (found[1] / "model.safetensors").read_bytes() == expected
    assert last >= 8
