"""The tensors of a folder: `model.safetensors`, or shards named by an index. Read with distrust, written in a stream.

A safetensors file is eight bytes with the length of a header, the header (JSON: name -> dtype, shape, place), and the
bytes of all tensors without a gap. Headers are checked here, by our own few lines, before a byte of data is used:
a fault is told with its reason, a check costs bounded time and memory, and the data is then read by plain calls into
memory of the tensor's own, so that a file which shrinks or goes away later harms nothing. (A mapped file would kill
the process.) Reading costs one copy, as little as any owner of its memory pays.
"""

import json
import math
import os
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor

from seqloom.core.checkpoint.json_file import parse_json, read_json, shown
from seqloom.core.checkpoint.regular_file import opened, read_into, real_path
from seqloom.core.errors import CheckpointError
from seqloom.core.progress import Progress

_MOST_HEADER_BYTES = 16 << 20
_MOST_IN_FILE = 65_536
"""Tensors of one file; the largest published model has 51,023 in all."""
MOST_TENSORS = 262_144
_MOST_FILES = 4_096
_MOST_INDEX_BYTES, _MOST_HEADERS_BYTES = 32 << 20, 128 << 20
_MOST_AXES = 16
_FACTS = {"dtype", "shape", "data_offsets"}

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E8M0": torch.float8_e8m0fnu,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


class Entry(NamedTuple):
    """Where a tensor lies: bytes `start` to `stop` of a file."""

    file: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    stop: int


class TensorFolder:
    """All tensors of a folder by name.

    Attributes:
        entries: name -> place, in the order of the files' headers.
        metadata: the notes that all headers carry, text by name.
    """

    def __init__(self, folder: Path, stem: str = "model") -> None:
        """Check every header, and that index and headers say the same.

        Args:
            stem: "model" for `model.safetensors` or `model.safetensors.index.json`; adapters have another one.
        Raises:
            CheckpointError: there are no tensors, or a file is missing, damaged or refused; which, and why.
        """
        single, index = folder / f"{stem}.safetensors", folder / f"{stem}.safetensors.index.json"
        homes = _read_index(index) if os.path.lexists(index) else None
        if homes is None and not os.path.lexists(single):
            raise CheckpointError(f"{folder}: holds neither {single.name} nor {index.name}")
        promised: dict[str, list[str]] = {single.name: []} if homes is None else {}
        for tensor, file in (homes or {}).items():
            promised.setdefault(file, []).append(tensor)
        if single.name not in promised and os.path.lexists(single):
            raise CheckpointError(f"{folder}: holds {single.name} and an index of other files; remove one of the two")
        self.entries: dict[str, Entry] = {}
        self.metadata: dict[str, str] = {}
        self._files: dict[Path, tuple[Path, Identity]] = {}
        header_bytes = 0
        for name in sorted(promised):
            header = read_header(folder / name)
            if homes is not None:
                _compare(index, homes, name, promised[name], header.entries)
            self.entries |= header.entries
            self.metadata |= header.metadata
            self._files[folder / name] = header.real, header.identity
            header_bytes += header.length
            if len(self.entries) > MOST_TENSORS or header_bytes > _MOST_HEADERS_BYTES:
                raise CheckpointError(f"{folder}: more than {MOST_TENSORS:,} tensors")

    def read(self, name: str, rows: slice | None = None) -> Tensor:
        """A tensor, or rows `rows` of its first axis, in memory of its own.

        Raises:
            CheckpointError: the file cannot be read (any more), or memory does not suffice.
        """
        entry = self.entries[name]
        first, last = _bounds(entry, rows)
        shape = entry.shape if rows is None else (last - first, *entry.shape[1:])
        tensor = allocate(shape, entry.dtype, f"{entry.file}: tensor {shown(name)}")
        self.read_into(name, tensor, rows)
        return tensor

    def read_into(self, name: str, tensor: Tensor, rows: slice | None = None) -> None:
        """The same into a contiguous CPU tensor of the file's dtype."""
        entry = self.entries[name]
        first, last = _bounds(entry, rows)
        row = (entry.stop - entry.start) // entry.shape[0] if entry.shape and entry.shape[0] else 0
        start, stop = (
            (entry.start, entry.stop) if rows is None else (entry.start + first * row, entry.start + last * row)
        )
        assert tensor.dtype == entry.dtype
        assert tensor.nbytes == stop - start
        real, identity = self._files[entry.file]
        with opened(entry.file, real=real) as descriptor:
            if _identity(descriptor) != identity:
                raise CheckpointError(f"{entry.file}: has changed since its header was read")
            read_into(descriptor, _bytes_of(tensor), start)


class Header(NamedTuple):
    """What one file holds: places by name, notes, and how many bytes it took to say so; and which file it was."""

    entries: dict[str, Entry]
    metadata: dict[str, str]
    length: int
    real: Path
    identity: "Identity"


Identity = tuple[int, int, int, int]
"""Device, number, size and time of change of a file: another one of the same name differs in one of them."""


def _identity(descriptor: int) -> Identity:
    status = os.fstat(descriptor)
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def read_header(path: Path) -> Header:
    """The checked header of one safetensors file.

    Raises:
        CheckpointError: missing, damaged, or out of bounds.
    """
    real = real_path(path)
    with opened(path, real=real) as descriptor:
        identity = _identity(descriptor)
        size = os.fstat(descriptor).st_size
        if size < 8:
            raise CheckpointError(f"{path}: damaged or not a safetensors file: {size} bytes, too short for a header")
        (length,) = struct.unpack("<Q", os.pread(descriptor, 8, 0))
        if length > size - 8:
            raise CheckpointError(
                f"{path}: damaged or not a safetensors file: {size:,} bytes long, with a header of {length:,}"
            )
        if length > _MOST_HEADER_BYTES:
            raise CheckpointError(f"{path}: a header of {length:,} bytes; at most {_MOST_HEADER_BYTES:,} are read here")
        header = bytearray(length)
        read_into(descriptor, memoryview(header), 8)
    if not header.startswith(b"{"):
        raise CheckpointError(f"{path}: damaged or not a safetensors file: its header does not begin with '{{'")
    if (count := header.count(b'"data_offsets"')) > _MOST_IN_FILE:
        raise CheckpointError(f"{path}: header: {count:,} tensors; at most {_MOST_IN_FILE:,} are read from one file")
    fields = parse_json(header, f"{path}: header")
    metadata = fields.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(note, str) for note in metadata.values()):
        raise CheckpointError(f"{path}: header: __metadata__ must hold texts only")
    entries = {name: _entry(path, name, facts, 8 + length) for name, facts in fields.items()}
    _check_places(path, entries, 8 + length, size)
    return Header(entries, metadata, length, real, identity)


def _entry(path: Path, name: str, facts: Any, data: int) -> Entry:
    def fail(reason: str) -> NoReturn:
        raise CheckpointError(f"{path}: header: tensor {shown(name)}: {reason}")

    if not isinstance(facts, dict) or facts.keys() != _FACTS:
        fail(f"must have dtype, shape and data_offsets, and has {shown(facts)}")
    kind, shape, offsets = facts["dtype"], facts["shape"], facts["data_offsets"]
    dtype = _DTYPES.get(kind) if isinstance(kind, str) else None
    if dtype is None:
        fail(f"dtype {shown(kind)} is not known here; known: {', '.join(_DTYPES)}")
    if not _are_counts(shape) or len(shape) > _MOST_AXES:
        fail(f"shape {shown(shape)} is not a list of at most {_MOST_AXES} sizes")
    if not _are_counts(offsets) or len(offsets) != 2:
        fail(f"data_offsets {shown(offsets)} are not two positions")
    if math.prod(max(size, 1) for size in shape) * dtype.itemsize >= 1 << 62:
        fail(f"shape {shown(shape)} overflows")
    (start, stop), size = offsets, math.prod(shape) * dtype.itemsize
    if stop - start != size:
        fail(
            f"{kind} of shape {shown(shape)} has {size:,} bytes, but data_offsets {shown(offsets)} span "
            f"{stop - start:,}"
        )
    return Entry(path, dtype, tuple(shape), data + start, data + stop)


def _check_places(path: Path, entries: Mapping[str, Entry], data: int, size: int) -> None:
    """Tensors must fill the file from the header's end to its own, without a gap or an overlap."""
    reached, before = data, ""
    for name, entry in sorted(entries.items(), key=lambda item: item[1][-2:]):
        if entry.start < reached:
            raise CheckpointError(f"{path}: header: tensors {shown(before)} and {shown(name)} overlap")
        if entry.start > reached:
            raise CheckpointError(
                f"{path}: header: {entry.start - reached:,} bytes before tensor {shown(name)} belong to no tensor"
            )
        reached, before = entry.stop, name
    if reached > size:
        raise CheckpointError(
            f"{path}: damaged: cut short at {size:,} bytes; its tensors end at {reached:,}, with {shown(before)}"
        )
    if reached < size:
        raise CheckpointError(f"{path}: damaged: {size - reached:,} bytes at its end belong to no tensor")


def _read_index(path: Path) -> dict[str, str]:
    homes = read_json(path, limit=_MOST_INDEX_BYTES).get("weight_map")
    if not isinstance(homes, dict) or not homes:
        raise CheckpointError(f"{path}: has no 'weight_map'")
    for name, file in homes.items():
        # Only a plain name: with "..", "/" or "\" in it, it would be a path to somewhere else.
        if not isinstance(file, str) or not file.endswith(".safetensors") or set(file) & set("/\\\0"):
            raise CheckpointError(
                f"{path}: tensor {shown(name)} is said to be in {shown(file)}, which is not the plain name of a "
                ".safetensors file"
            )
    files = set(homes.values())
    if len(files) > _MOST_FILES:
        raise CheckpointError(f"{path}: names {len(files):,} files; at most {_MOST_FILES:,} are read here")
    for file in sorted(files):
        if not os.path.lexists(path.parent / file):
            raise CheckpointError(f"{path}: names the file {shown(file)}, which is not in this folder")
    return homes


def _compare(
    index: Path, homes: Mapping[str, str], file: str, promised: Sequence[str], entries: Mapping[str, Entry]
) -> None:
    """A file must hold what the index puts there, and nothing else."""
    for name in promised:
        if name not in entries:
            raise CheckpointError(f"{index.parent / file}: tensor {shown(name)} is missing; {index.name} puts it here")
    for name in entries:
        if homes.get(name) != file:
            told = f"puts it in {homes[name]}" if name in homes else "does not name it"
            raise CheckpointError(f"{index.parent / file}: holds tensor {shown(name)}; {index.name} {told}")


def _are_counts(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is int and 0 <= value < 1 << 62 for value in values)


def _bounds(entry: Entry, rows: slice | None) -> tuple[int, int]:
    if rows is None:
        return 0, 0
    first, last, step = rows.indices(entry.shape[0])
    assert step == 1
    return first, max(first, last)


def _bytes_of(tensor: Tensor) -> memoryview:
    """The memory of a contiguous CPU tensor."""
    return tensor.detach().reshape(-1).view(torch.uint8).numpy().data


def allocate(shape: tuple[int, ...], dtype: torch.dtype, what: str) -> Tensor:
    """Memory for a tensor, or a CheckpointError that says what does not fit."""
    try:
        return torch.empty(shape, dtype=dtype)
    except (RuntimeError, MemoryError):
        size = math.prod(shape) * dtype.itemsize
        raise CheckpointError(f"{what} takes {size:,} bytes, more memory than there is") from None


class Planned(NamedTuple):
    """A tensor that is going to be written.

    Attributes:
        parts: gives consecutive pieces along the first axis, of this dtype; called once, when their turn comes.
    """

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    parts: Callable[[], Iterable[Tensor]]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def write_tensors(
    folder: Path,
    planned: Sequence[Planned],
    *,
    stem: str = "model",
    shard_bytes: int = 5 << 30,
    metadata: Mapping[str, str] | None = None,
    progress: Progress | None = None,
) -> None:
    """Write tensors one after another, never holding more than one part of one of them.

    They go into `<stem>.safetensors` if they have at most `shard_bytes`, else into numbered shards with an index.

    Args:
        metadata: notes for the headers, beside the mark that readers for several frameworks require.
        progress: told the share of bytes written.
    Raises:
        CheckpointError: a file cannot be written.
    """
    shards = _shards(planned, shard_bytes)
    count = len(shards)
    files = (
        [f"{stem}.safetensors"]
        if count == 1
        else [f"{stem}-{i + 1:05}-of-{count:05}.safetensors" for i in range(count)]
    )
    total, done = sum(tensor.nbytes for tensor in planned), 0
    for file, shard in zip(files, shards, strict=True):
        path = folder / file
        try:
            with path.open("wb", buffering=0) as out:
                _write_all(out.fileno(), _header(shard, {"format": "pt"} | dict(metadata or {})))
                for tensor in shard:
                    for memory in _checked_parts(tensor):
                        _write_all(out.fileno(), memory)
                        done += len(memory)
                        if progress is not None:
                            progress("writing weights", done / total)
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be written: {error.strerror or error}") from error
    if count > 1:
        homes = {tensor.name: file for file, shard in zip(files, shards, strict=True) for tensor in shard}
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(homes.items()))}
        _write_index(folder / f"{stem}.safetensors.index.json", index)


def _shards(planned: Sequence[Planned], shard_bytes: int) -> list[list[Planned]]:
    """Tensors in their order, a new shard where one is full; within it, wide numbers first so that all lie aligned."""
    shards: list[list[Planned]] = [[]]
    room = shard_bytes
    for tensor in planned:
        if (tensor.nbytes > room and shards[-1]) or len(shards[-1]) == _MOST_IN_FILE:
            shards.append([])
            room = shard_bytes
        shards[-1].append(tensor)
        room -= tensor.nbytes
    return [sorted(shard, key=lambda tensor: -tensor.dtype.itemsize) for shard in shards]


def _header(shard: Sequence[Planned], metadata: Mapping[str, str]) -> bytes:
    fields: dict[str, Any] = {"__metadata__": metadata}
    start = 0
    for tensor in shard:
        assert tensor.name not in fields, f"two tensors of the name {tensor.name}"
        stop = start + tensor.nbytes
        fields[tensor.name] = {"dtype": _NAMES[tensor.dtype], "shape": tensor.shape, "data_offsets": (start, stop)}
        start = stop
    text = json.dumps(fields, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def _checked_parts(tensor: Planned) -> Iterator[memoryview]:
    size = 0
    for part in tensor.parts():
        assert part.dtype == tensor.dtype, f"{tensor.name}: a part in {part.dtype}, planned {tensor.dtype}"
        assert part.shape[1:] == tensor.shape[1:], f"{tensor.name}: a part of shape {tuple(part.shape)}"
        memory = _bytes_of(part.detach().cpu().contiguous())
        size += len(memory)
        yield memory
    assert size == tensor.nbytes, f"{tensor.name}: {size} bytes in parts, {tensor.nbytes} planned"


def _write_index(path: Path, index: dict[str, Any]) -> None:
    try:
        path.write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be written: {error.strerror or error}") from error


def _write_all(descriptor: int, data: bytes | memoryview) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]
