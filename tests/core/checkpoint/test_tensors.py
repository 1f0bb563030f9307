"""Every tensor comes back bit for bit, whatever its memory looked like, and every bad file is named."""

import os
import stat
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from seqloom.core.checkpoint.tensors import load_tensors, save_tensors
from seqloom.core.errors import CheckpointError


@pytest.mark.parametrize(
    "dtype",
    [torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.int64, torch.uint8],
)
def test_bits_survive(dtype: torch.dtype, tmp_path: Path) -> None:
    width = torch.empty((), dtype=dtype).element_size()
    tensor = torch.randint(0, 256, (5, 7 * width), dtype=torch.uint8).view(dtype)
    save_tensors(tmp_path / "x", {"a.b": tensor, "scalar": tensor[0, 0], "empty": tensor[:0]})
    loaded = load_tensors(tmp_path / "x")
    assert {name: value.shape for name, value in loaded.items()} == {"a.b": (5, 7), "scalar": (), "empty": (0, 7)}
    assert torch.equal(loaded["a.b"].view(torch.uint8), tensor.view(torch.uint8))


def test_views_and_shared_memory_are_stored_in_full(tmp_path: Path) -> None:
    whole = torch.arange(24.0).reshape(4, 6).requires_grad_()
    tensors = {"whole": whole, "tied": whole, "turned": whole.T, "part": whole[1:3], "column": whole[:, 2]}
    tensors |= {"spread": torch.ones(1).expand(3), "every": whole.flatten()[::5]}
    save_tensors(tmp_path / "x", tensors)
    loaded = load_tensors(tmp_path / "x")
    assert loaded.keys() == tensors.keys()
    assert all(torch.equal(loaded[name], tensors[name]) for name in tensors)
    assert whole.requires_grad  # what is saved is left as it was
    assert sum(tensor.nbytes for tensor in loaded.values()) < (tmp_path / "x").stat().st_size


def test_a_plain_tensor_is_not_copied_to_be_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.Tensor, "clone", lambda tensor: pytest.fail("copied"))
    save_tensors(tmp_path / "x", {"a": torch.ones(3), "b": torch.ones(3)})


def test_other_readers_find_the_mark_they_require(tmp_path: Path) -> None:
    save_tensors(tmp_path / "x", {"a": torch.ones(3)})
    with safe_open(tmp_path / "x", framework="pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_the_file_may_be_read_by_whom_the_user_lets(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        save_tensors(tmp_path / "x", {"a": torch.ones(3)})
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "x").stat().st_mode) == 0o640


def test_loaded_tensors_do_not_depend_on_the_file(tmp_path: Path) -> None:
    save_tensors(tmp_path / "x", {"a": torch.ones(1000)})
    loaded = load_tensors(tmp_path / "x")
    os.truncate(tmp_path / "x", 0)
    assert torch.equal(loaded["a"], torch.ones(1000))


def test_a_bad_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    with pytest.raises(CheckpointError, match=r"model\.safetensors: missing"):
        load_tensors(path)
    save_tensors(path, {"a": torch.ones(100), "b": torch.ones(100)})
    whole = path.read_bytes()
    for size in (0, 4, 30, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(CheckpointError, match=r"model\.safetensors: damaged"):
            load_tensors(path)
    path.write_bytes(b"text " * 50)
    with pytest.raises(CheckpointError, match=r"model\.safetensors: damaged"):
        load_tensors(path)
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_tensors(tmp_path)


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"nowhere/x: cannot be written: No such file"):
        save_tensors(tmp_path / "nowhere" / "x", {"a": torch.ones(1)})
