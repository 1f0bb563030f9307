"""Whatever happens to the bytes of a checkpoint is named, and the step before it is used."""

import random
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from train.toy import ToyRun

from seqloom.core.checkpoint.run_folder import RunFolder
from seqloom.train.loop import train


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = ToyRun()
    path = tmp_path_factory.mktemp("damage") / "run"
    train(replace(run, train=replace(run.train, save_every=4, keep_steps=3)), path)
    return path


def flip(path: Path, draw: random.Random) -> None:
    data = bytearray(path.read_bytes())
    data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    path.write_bytes(data)


def truncate(path: Path, draw: random.Random) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: draw.randrange(len(data))])


def lengthen(path: Path, draw: random.Random) -> None:
    path.write_bytes(path.read_bytes() + draw.randbytes(draw.randint(1, 100)))


def remove(path: Path, draw: random.Random) -> None:
    path.unlink()


def swap(path: Path, draw: random.Random) -> None:
    """The file of the step before takes its place."""
    before = sorted(path.parent.parent.iterdir())[-2] / path.name
    if before.read_bytes() == path.read_bytes():
        flip(path, draw)  # equal in both steps, so a swap would be no damage
    else:
        path.write_bytes(before.read_bytes())


def blank(path: Path, draw: random.Random) -> None:
    """A hole, as some file systems leave after a crash."""
    size = path.stat().st_size
    path.write_bytes(bytes(size))


WAYS: tuple[Callable[[Path, random.Random], None], ...] = (flip, truncate, lengthen, remove, swap, blank)


@pytest.mark.timeout(900)
def test_every_damage_is_named_and_the_older_step_is_used(damages: int, folder: Path, tmp_path: Path) -> None:
    draw = random.Random(0)
    steps = RunFolder(folder).steps()
    spoilt = tmp_path / "run"
    shutil.copytree(folder, spoilt, symlinks=True)
    newest = spoilt / "steps" / f"{steps[-1]:08d}"
    names = sorted(path.name for path in newest.iterdir())
    for number in range(damages):
        name, way = draw.choice(names), WAYS[number % len(WAYS)]
        whole = (newest / name).read_bytes()
        way(newest / name, draw)
        told: list[str] = []
        found = RunFolder(spoilt).open_latest(told.append)
        assert found is not None, (name, way)
        assert found[0] == steps[-2], (name, way)
        assert name in told[0] or name == "manifest.json", (
            way,
            told,
        )  # a swapped list makes the others the damaged ones
        (newest / name).write_bytes(whole)
    found = RunFolder(spoilt).open_latest()
    assert found is not None
    assert found[0] == steps[-1]
