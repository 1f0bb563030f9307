"""Every system on the one loop: what must hold of a run, whatever it learns.

Each system trains once undisturbed; whatever happens to another run of the same settings, it must leave the same:
model, optimizer, task, random generators, log. What differs between systems is in `conformance.py`.
"""

import math
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from systems.conformance import DEATHS, SYSTEMS, Killer, System
from torch import Tensor
from train.test_loop import SignalAt, result

import seqloom
from seqloom.cli.main import main
from seqloom.cli.runs import find_run
from seqloom.core import rooms
from seqloom.core.checkpoint.run_folder import RunFolder
from seqloom.core.config import to_data
from seqloom.core.errors import CheckpointError
from seqloom.train.checks import FREE_SETTINGS
from seqloom.train.interrupt import Interrupted
from seqloom.train.loop import train

pytestmark = pytest.mark.full

CPU = torch.device("cpu")
LEARNED = ("model.safetensors", "optim.safetensors", "task.safetensors", "rng.safetensors")


class Whole(NamedTuple):
    """A run that nothing disturbed, and what it left."""

    system: System
    data: Path
    run: Any
    folder: Path
    left: dict[str, Any]


def left(folder: Path) -> dict[str, Any]:
    """Everything but what the clock decides."""
    found = result(folder)
    for line in found["metrics"]:
        for name in [name for name in line if name.endswith("_per_second")]:
            del line[name]
    return found


@pytest.fixture(scope="module", params=SYSTEMS)
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    system, place = SYSTEMS[request.param], tmp_path_factory.mktemp(request.param)
    system.write(place / "data")
    run = system.make(place / "data")
    train(run, place / "whole")
    return Whole(system, place / "data", run, place / "whole", left(place / "whole"))


@pytest.fixture
def copied(whole: Whole, tmp_path: Path) -> Path:
    """The run folder, to be spoilt."""
    shutil.copytree(whole.folder, tmp_path / "copied", symlinks=True)
    return tmp_path / "copied"


@pytest.fixture(scope="module")
def killer() -> Iterator[Killer]:
    worker = Killer()
    yield worker
    worker.close()


# --- the same bits


def test_the_same_seed_gives_the_same_bits_and_another_one_does_not(whole: Whole, tmp_path: Path) -> None:
    train(whole.run, tmp_path / "again")
    assert left(tmp_path / "again") == whole.left
    other = replace(whole.run, seed=1, train=replace(whole.run.train, steps=1))
    first = left(train(other, tmp_path / "other").path)["metrics"][0]
    assert first["loss"] != whole.left["metrics"][0]["loss"]


def test_stopped_by_a_signal_it_goes_on_as_if_it_had_not_been(whole: Whole, tmp_path: Path) -> None:
    with pytest.raises(Interrupted, match="step 3 is saved"):
        train(whole.run, tmp_path, SignalAt(3))
    run, folder = find_run(str(tmp_path))  # as the command line finds it
    assert folder == tmp_path
    assert run == whole.run
    seqloom.train(run, tmp_path)
    assert left(tmp_path) == whole.left


@pytest.mark.parametrize("death", DEATHS)
def test_killed_it_goes_on_from_the_last_step_saved(death: str, whole: Whole, killer: Killer, tmp_path: Path) -> None:
    assert killer.train(whole.system.name, whole.data, tmp_path, death) == -9
    assert RunFolder(tmp_path).steps() == [2]
    train(whole.run, tmp_path)
    assert left(tmp_path) == whole.left


# --- damage


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) * 2 // 3] ^= 4
    path.write_bytes(data)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


@pytest.mark.parametrize(
    ("name", "spoil"),
    [
        ("model.safetensors", flip),
        ("optim.safetensors", flip),
        ("task.safetensors", flip),
        ("rng.safetensors", truncate),
        ("state.json", Path.unlink),
    ],
)
def test_a_damaged_step_is_named_and_the_one_before_it_used(
    name: str, spoil: Callable[[Path], None], whole: Whole, copied: Path
) -> None:
    newest = copied / "steps" / "00000005" / name
    if not newest.exists():
        assert name == "task.safetensors"
        assert whole.system.name != "attention_agent"
        return
    spoil(newest)
    told: list[str] = []
    found = RunFolder(copied).open_latest(told.append)
    assert found is not None
    assert found[0] == 4
    assert name in told[0]
    with pytest.warns(UserWarning, match=rf"step 5: .*{name}.*using step 4"):
        train(whole.run, copied)
    assert left(copied) == whole.left


# --- gradients


def gradients(run: Any, changed: Callable[[Any], Any] = lambda micro: micro) -> tuple[int, dict[str, Tensor]]:
    """Micro-batches of a step of fresh weights, and its gradients, added in FP64."""
    torch.manual_seed(0)
    task, model = run.task.build(run, CPU), run.build_model().train()
    batch = task.next_batch(model, 1)
    found = {name: torch.zeros_like(p, dtype=torch.float64) for name, p in model.named_parameters()}
    for micro in batch:
        task.loss(model, changed(micro)).total.backward()
        for name, parameter in model.named_parameters():
            if parameter.grad is not None:
                found[name] += parameter.grad
        model.zero_grad()
    task.close()
    return len(batch), found


def apart(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """The relative distance of all gradients as one vector."""
    return norm(one[name] - other[name] for name in one) / norm(one.values())


def norm(tensors: Iterable[Tensor]) -> float:
    return math.hypot(*(float(tensor.norm()) for tensor in tensors))


def test_micro_batches_change_no_gradient(whole: Whole) -> None:
    (one, at_once), (two, halves), (four, quarters) = (
        gradients(whole.system.split(whole.run, pieces)) for pieces in (1, 2, 4)
    )
    assert (one, two, four) == (1, 2, 4)
    assert apart(at_once, halves) <= 1e-6
    assert apart(at_once, quarters) <= 1e-6


@pytest.mark.parametrize("name", [name for name, system in SYSTEMS.items() if system.pad])
def test_padding_changes_no_gradient(name: str, tmp_path: Path) -> None:
    system = SYSTEMS[name]
    assert system.pad is not None
    system.write(tmp_path / "data")
    run = system.make(tmp_path / "data")
    assert apart(gradients(run)[1], gradients(run, system.pad)[1]) <= 1e-5


def test_one_batch_can_be_learned(whole: Whole) -> None:
    torch.manual_seed(0)
    task, model = whole.run.task.build(whole.run, CPU), whole.run.build_model().train()
    (micro,) = task.next_batch(model, 0)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    seen = []
    for _ in range(40):
        loss = task.loss(model, micro)
        seen.append(float(loss.metrics[whole.system.falls]))
        optimizer.zero_grad()
        (loss.total / loss.units).backward()
        optimizer.step()
    task.close()
    assert seen[-1] < 0.5 * seen[0]


# --- folders and settings


def test_the_budget_counts_the_parameters(whole: Whole) -> None:
    count = sum(tensor.numel() for tensor in whole.system.counted(whole.run.build_model()))
    assert rooms.part(whole.system.name, "budget").headline(whole.run.model)["total_parameters"] == count


def test_the_run_folder_is_a_model_folder(whole: Whole) -> None:
    model, fresh = rooms.load(whole.folder), whole.run.build_model()
    began = {name: tensor.clone() for name, tensor in fresh.state_dict().items()}
    fresh.read_folder(whole.folder / "latest")
    assert not model.training
    torch.testing.assert_close(model.state_dict(), fresh.state_dict(), rtol=0, atol=0)
    learned = [name for name, _ in model.named_parameters() if not torch.equal(began[name], model.state_dict()[name])]
    assert len(learned) > 0.5 * len(began)


def test_settings_that_decide_nothing_may_change_when_a_run_goes_on(whole: Whole, copied: Path) -> None:
    shutil.rmtree(copied / "steps" / "00000005")
    (copied / "latest").unlink()
    changes = {
        "async_save": True,
        "evaluate_every": 4,
        "keep_steps": 3,
        "log_every": 2,
        "monitor_every": 1,
        "not_finite_limit": 7,
        "on_not_finite": "skip",
        "save_every": 1,
        "threads": 1,
    }
    run = replace(whole.run, name="other", train=replace(whole.run.train, **changes))
    there, here = to_data(whole.run.train), to_data(run.train)
    assert [name for name in changes if there[name] == here[name]] == []
    assert {f"train.{name}" for name in changes} < set(FREE_SETTINGS)
    train(run, copied)
    found = left(copied)
    assert {name: found.get(name) for name in LEARNED} == {name: whole.left.get(name) for name in LEARNED}


def test_another_run_is_refused_by_the_setting_that_differs(whole: Whole) -> None:
    with pytest.raises(CheckpointError, match=r"a different run lives here.*\n  seed: 0 there, 3 here"):
        train(replace(whole.run, seed=3), whole.folder)


# --- what people read


def test_the_run_is_shown(whole: Whole, capsys: pytest.CaptureFixture[str]) -> None:
    text = said(capsys, "show", whole.folder)
    for part in (f"system: {whole.system.name}", "total parameters", "needed bytes", "newest checkpoint"):
        assert part in text
    free_of_other_words(whole, text)


def test_the_system_is_listed(whole: Whole, capsys: pytest.CaptureFixture[str]) -> None:
    assert f"\n{whole.system.name}: " in f"\n{said(capsys, 'list')}"


def test_the_run_is_reported(whole: Whole, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = said(capsys, "report", whole.folder, "--out", tmp_path / "page.html")
    assert text.splitlines()[0].split() == ["steps", "5", "of", "5"]
    assert f"{whole.system.unit} per second" in text
    free_of_other_words(whole, text)
    free_of_other_words(whole, (tmp_path / "page.html").read_text(encoding="utf-8"))


def test_runs_are_compared(whole: Whole, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = said(capsys, "compare", whole.folder, whole.folder, "--out", tmp_path / "page.html")
    assert "settings: all the same" in text
    assert f"\n{whole.system.compared} " in text
    assert f"{whole.system.unit} per second, median" in text
    free_of_other_words(whole, text)
    free_of_other_words(whole, (tmp_path / "page.html").read_text(encoding="utf-8"))


def said(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    capsys.readouterr()
    main([str(argument) for argument in arguments])
    return capsys.readouterr().out


def free_of_other_words(whole: Whole, text: str) -> None:
    """What another system counts has no place here."""
    for system in SYSTEMS.values():
        if system.unit != whole.system.unit:
            assert f"{system.unit} per second" not in text
    if whole.system.unit != "tokens":
        text = text.lower().replace("token draw", "")  # an op, in the list of kernels
        assert "token" not in text.replace("tokenizer", "")
