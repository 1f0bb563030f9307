"""Tensors of a folder: what is written is what every reader finds, and no header is believed unchecked."""

import json
import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from seqloom.core.checkpoint.tensor_folder import Planned, TensorFolder, write_tensors
from seqloom.core.errors import CheckpointError

TENSORS = {
    "a.narrow": torch.arange(35, dtype=torch.float32).bfloat16().reshape(5, 7),
    "b": torch.arange(12.0).reshape(4, 3),
    "c.scalar": torch.tensor(7.0),
    "d.empty": torch.empty(0, 4),
    "e.whole": torch.arange(9, dtype=torch.int64),
    "f.odd": torch.tensor([1, 2, 3], dtype=torch.uint8),
    "g.eight": torch.tensor([1.0, -2.0]).to(torch.float8_e4m3fn),
    "h.flags": torch.tensor([True, False]),
}


def plan(tensors: dict[str, Tensor]) -> list[Planned]:
    def parts(tensor: Tensor) -> Callable[[], Iterator[Tensor]]:
        return lambda: (tensor[i : i + 2] for i in range(0, len(tensor), 2)) if tensor.ndim else iter([tensor])

    return [Planned(name, value.dtype, tuple(value.shape), parts(value)) for name, value in tensors.items()]


def equal(a: Tensor, b: Tensor) -> bool:
    return (
        a.dtype == b.dtype
        and a.shape == b.shape
        and torch.equal(a.reshape(-1).view(torch.uint8), b.reshape(-1).view(torch.uint8))
    )


@pytest.mark.parametrize("shard_bytes", [1 << 30, 100, 1])
def test_bits_survive_in_one_file_and_in_shards(shard_bytes: int, tmp_path: Path) -> None:
    write_tensors(tmp_path, plan(TENSORS), shard_bytes=shard_bytes)
    folder = TensorFolder(tmp_path)
    assert folder.entries.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert equal(folder.read(name), tensor), name
    assert len(list(tmp_path.glob("*.safetensors"))) == {1 << 30: 1, 100: 3, 1: 8}[shard_bytes]
    for path in tmp_path.glob("*.safetensors"):  # the format's own library agrees
        assert all(equal(tensor, TENSORS[name]) for name, tensor in load_file(path).items())
        with safe_open(path, framework="pt") as file:
            assert file.metadata() == {"format": "pt"}


def test_rows_are_read_alone(tmp_path: Path) -> None:
    write_tensors(tmp_path, plan(TENSORS))
    folder = TensorFolder(tmp_path)
    for rows in (slice(0, 2), slice(1, 4), slice(3, 99), slice(2, 2)):
        assert equal(folder.read("b", rows), TENSORS["b"][rows])
        assert equal(folder.read("a.narrow", rows), TENSORS["a.narrow"][rows])


def test_files_of_the_formats_own_library_are_read(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "model.safetensors", metadata={"note": "x"})
    folder = TensorFolder(tmp_path)
    assert all(equal(folder.read(name), tensor) for name, tensor in TENSORS.items())
    assert folder.metadata == {"note": "x"}


def test_another_stem_is_another_set_of_files(tmp_path: Path) -> None:
    write_tensors(tmp_path, plan({"a": torch.ones(3)}), stem="adapter_model")
    write_tensors(tmp_path, plan({"b": torch.ones(3)}), shard_bytes=1)
    assert list(TensorFolder(tmp_path, "adapter_model").entries) == ["a"]
    assert list(TensorFolder(tmp_path).entries) == ["b"]


def test_every_tensor_lies_aligned_for_readers_that_map(tmp_path: Path) -> None:
    write_tensors(tmp_path, plan(TENSORS))
    for entry in TensorFolder(tmp_path).entries.values():
        assert entry.start % entry.dtype.itemsize == 0


def test_the_index_is_the_one_that_other_readers_expect(tmp_path: Path) -> None:
    write_tensors(tmp_path, plan({"a": torch.ones(3), "b": torch.ones(3)}), shard_bytes=12)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    assert index == {"metadata": {"total_size": 24}, "weight_map": {"a": names[0], "b": names[1]}}


def test_never_more_than_one_part_is_alive(tmp_path: Path) -> None:
    import weakref

    alive: list[weakref.ref[Tensor]] = []

    def parts() -> Iterator[Tensor]:
        for index in range(5):
            assert sum(each() is not None for each in alive) <= 1
            part = torch.full((2, 3), float(index))
            alive.append(weakref.ref(part))
            yield part

    shares: list[float] = []
    write_tensors(
        tmp_path,
        [Planned("a", torch.float32, (10, 3), parts)],
        progress=lambda what, share: shares.append(share),
    )
    assert len(alive) == 5
    assert shares == [0.2, 0.4, 0.6, 0.8, 1.0]


def test_a_plan_that_is_not_kept_is_a_slip_of_ours(tmp_path: Path) -> None:
    for planned in (
        Planned("a", torch.float32, (3, 3), lambda: [torch.ones(2, 3)]),
        Planned("a", torch.float32, (2, 3), lambda: [torch.ones(2, 4)]),
        Planned("a", torch.bfloat16, (2, 3), lambda: [torch.ones(2, 3)]),
    ):
        with pytest.raises(AssertionError, match=r"^a: "):
            write_tensors(tmp_path, [planned])


def test_what_is_read_does_not_depend_on_the_file(tmp_path: Path) -> None:
    write_tensors(tmp_path, plan({"a": torch.ones(10_000)}))
    folder = TensorFolder(tmp_path)
    tensor = folder.read("a")
    os.truncate(tmp_path / "model.safetensors", 1000)
    assert torch.equal(tensor, torch.ones(10_000))
    with pytest.raises(CheckpointError, match=r"model\.safetensors: has changed since its header was read"):
        folder.read("a")
    write_tensors(tmp_path, plan({"other": torch.zeros(10_000)}))
    with pytest.raises(CheckpointError, match=r"model\.safetensors: has changed since its header was read"):
        folder.read("a")
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model\.safetensors: cannot be read: No such file"):
        folder.read("a")


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"nowhere/model\.safetensors: cannot be written: No such file"):
        write_tensors(tmp_path / "nowhere", plan({"a": torch.ones(3)}))


def fill(path: Path, fields: dict[str, Any], data: bytes) -> None:
    header = json.dumps(fields).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + data)


def u8(start: int, stop: int, *shape: int) -> dict[str, Any]:
    return {"dtype": "U8", "shape": list(shape) or [stop - start], "data_offsets": [start, stop]}


@pytest.mark.parametrize(
    ("fields", "size", "told"),
    [
        ({"a": u8(0, 4), "b": u8(2, 6)}, 6, "tensors 'a' and 'b' overlap"),
        ({"a": u8(0, 4), "b": u8(0, 4)}, 4, "overlap"),
        ({"a": u8(0, 4), "b": u8(5, 6)}, 6, "1 bytes before tensor 'b' belong to no tensor"),
        ({"a": u8(1, 4)}, 4, "1 bytes before tensor 'a'"),
        ({"a": u8(0, 4)}, 3, "cut short at .* bytes"),
        ({"a": u8(0, 4)}, 5, "1 bytes at its end"),
        ({"a": u8(0, 4, 2, 3)}, 4, r"U8 of shape \[2, 3\] has 6 bytes, but data_offsets \[0, 4\] span 4"),
        ({"a": u8(4, 0, 4)}, 4, "span -4"),
        ({"a": u8(0, 0, 1 << 32, 1 << 32, 0)}, 0, "overflows"),
        ({"a": u8(0, 4) | {"dtype": "u8"}}, 4, "dtype 'u8' is not known here; known: F64"),
    ],
)
def test_places_must_fill_the_file_exactly(fields: dict[str, Any], size: int, told: str, tmp_path: Path) -> None:
    fill(tmp_path / "model.safetensors", fields, bytes(size))
    with pytest.raises(CheckpointError, match=rf"model\.safetensors: .*{told}"):
        TensorFolder(tmp_path)


def test_empty_tensors_take_no_place(tmp_path: Path) -> None:
    fields = {"a": u8(0, 0, 0, 5), "b": u8(0, 2), "c": u8(2, 2, 0), "d": u8(2, 3), "e": u8(3, 3, 0)}
    fill(tmp_path / "model.safetensors", fields, bytes([1, 2, 3]))
    folder = TensorFolder(tmp_path)
    assert [tuple(folder.read(name).shape) for name in "abcde"] == [(0, 5), (2,), (0,), (1,), (0,)]


def test_as_many_tensors_as_the_largest_published_model_has(tmp_path: Path) -> None:
    names = [f"backbone.layers.{i // 512}.mixer.experts.{i % 512}.up_proj.weight" for i in range(51_023)]
    fill(tmp_path / "model.safetensors", {name: u8(i, i + 1) for i, name in enumerate(names)}, bytes(51_023))
    assert list(TensorFolder(tmp_path).entries) == names
    fill(tmp_path / "model.safetensors", {str(i): u8(i, i + 1) for i in range(65_537)}, bytes(65_537))
    with pytest.raises(CheckpointError, match="65,537 tensors; at most 65,536"):
        TensorFolder(tmp_path)


def test_a_header_of_zero_tensors_is_a_folder_without_tensors(tmp_path: Path) -> None:
    fill(tmp_path / "model.safetensors", {}, b"")
    assert TensorFolder(tmp_path).entries == {}


class TestIndex:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        write_tensors(tmp_path, plan({"a": torch.ones(3), "b": torch.ones(3)}), shard_bytes=12)
        return tmp_path

    def change(self, folder: Path, homes: dict[str, Any]) -> None:
        path = folder / "model.safetensors.index.json"
        path.write_text(json.dumps({"weight_map": json.loads(path.read_text())["weight_map"] | homes}))

    @pytest.mark.parametrize(
        "file", ["../x.safetensors", "/x.safetensors", "x/y.safetensors", "x", "x.bin", "", 3, None]
    )
    def test_names_plain_files(self, file: Any, folder: Path) -> None:
        self.change(folder, {"a": file})
        with pytest.raises(CheckpointError, match=r"tensor 'a' is said to be in .*, which is not the plain name"):
            TensorFolder(folder)

    def test_and_headers_say_the_same(self, folder: Path) -> None:
        first, second = (f"model-0000{i}-of-00002.safetensors" for i in (1, 2))
        self.change(folder, {"c": second})
        with pytest.raises(
            CheckpointError, match=f"{second}: tensor 'c' is missing; model.safetensors.index.json puts"
        ):
            TensorFolder(folder)
        self.change(folder, {"a": first, "b": first, "c": first})
        with pytest.raises(CheckpointError, match=f"{first}: tensor '[bc]' is missing"):
            TensorFolder(folder)

    def test_knows_every_tensor(self, folder: Path) -> None:
        second = "model-00002-of-00002.safetensors"
        save_file({"b": torch.ones(3), "c": torch.ones(1)}, folder / second)
        with pytest.raises(CheckpointError, match=f"{second}: holds tensor 'c'; model.safetensors.index.json does not"):
            TensorFolder(folder)
        save_file({"b": torch.ones(3), "a": torch.ones(3)}, folder / second)
        with pytest.raises(CheckpointError, match=f"{second}: holds tensor 'a'; .* puts it in model-00001"):
            TensorFolder(folder)

    def test_may_name_the_single_file(self, tmp_path: Path) -> None:
        write_tensors(tmp_path, plan({"a": torch.ones(3)}))
        index = {"weight_map": {"a": "model.safetensors"}}
        (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
        assert list(TensorFolder(tmp_path).entries) == ["a"]
