"""A model folder rewritten: from any dialect and layout into the published one, tensor by tensor.

Never more than a piece of one tensor is in memory, so a folder many times larger than memory is converted as well. The
new folder appears whole or not at all, holds a manifest with digests, and takes along what belongs to the model:
tokenizer, chat template, generation settings, model card and licence. Code is never taken along, and whatever stays
behind is listed. How the result is compared with its source is in `verify.py`.
"""

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from seqloom.core.checkpoint import commit, manifest
from seqloom.core.checkpoint.regular_file import opened, read_into
from seqloom.core.checkpoint.run_folder import model_files
from seqloom.core.checkpoint.tensor_folder import Planned, write_tensors
from seqloom.core.errors import CheckpointError
from seqloom.core.progress import Progress
from seqloom.systems.hybrid_lm.disk_weights import CONFIG, EXPERT_AXES, OUT_IN, DiskWeights, disk_weights
from seqloom.systems.hybrid_lm.public_config import public_config

SHARD_BYTES = 5 << 30

Dtype = Literal["keep", "bf16", "fp32"]
Experts = Literal["separate", "stacked"]

_DTYPES: dict[Dtype, torch.dtype | None] = {"keep": None, "bf16": torch.bfloat16, "fp32": torch.float32}
_CARRIED = re.compile(
    r"tokenizer\.json|tokenizer\.model|tokenizer_config\.json|special_tokens_map\.json|added_tokens\.json|vocab\.json|"
    r"merges\.txt|chat_template\.(jinja|json)|generation_config\.json|(README|LICENSE|LICENCE|NOTICE)(\.(md|txt))?",
    re.IGNORECASE,
)
_WRITTEN_ANEW = re.compile(r"config\.json|model(-.*)?\.safetensors(\.index\.json)?")
_EXPERT = re.compile(r"^(.*\.mixer\.experts)\.(\d+)\.(up_proj|down_proj)\.weight$")
_MOST_CARRIED_BYTES = 64 << 20


@dataclass(frozen=True)
class Converted:
    """What a conversion did.

    Attributes:
        stored_as: bytes written in each number format.
        carried: files taken along as they are.
        left_behind: files, and fields of config.json, that were not.
    """

    tensors: int
    bytes: int
    stored_as: dict[str, int]
    carried: list[str]
    left_behind: list[str]


class Carried(NamedTuple):
    """Names of the files that were taken along, and of those left behind."""

    carried: list[str]
    left_behind: list[str]


def convert(
    source: Path,
    into: Path,
    *,
    dtype: Dtype = "keep",
    experts: Experts = "separate",
    shard_bytes: int = SHARD_BYTES,
    verified: bool = False,
    progress: Progress | None = None,
) -> Converted:
    """Write a model folder anew in the published dialect.

    Args:
        source: a model folder in any dialect and layout.
        into: must not exist.
        dtype: of the weights; router bias, A_log, D and dt_bias are FP32 in each case.
        experts: a tensor for each expert's matrix, as published, or all of a layer in one, [E, out, in].
        verified: the caller has just compared the source with its manifest.
    Raises:
        CheckpointError: the source is damaged or has missing, unknown or misshapen tensors; or `into` exists, cannot
            be written or has no room.
        ConfigError: the configuration contradicts itself or asks for what is not built here.
    """
    refuse_existing(into)
    weights = disk_weights(source, verified=verified)
    planned = list(_plan(weights, _DTYPES[dtype], stacked=experts == "stacked"))
    head = next(tensor.dtype for tensor in planned if tensor.name == "lm_head.weight")
    public = weights.public
    carried, left_behind = write_streamed(
        into,
        public_config(public.config, "bf16" if head == torch.bfloat16 else "fp32", public.carried),
        planned,
        carry_from=weights.folder,
        metadata={EXPERT_AXES: OUT_IN} if experts == "stacked" else {},
        shard_bytes=shard_bytes,
        progress=progress,
    )
    stored_as: dict[str, int] = {}
    for tensor in planned:
        name = str(tensor.dtype).removeprefix("torch.")
        stored_as[name] = stored_as.get(name, 0) + tensor.nbytes
    return Converted(
        tensors=len(planned),
        bytes=sum(stored_as.values()),
        stored_as=stored_as,
        carried=carried,
        left_behind=left_behind + [f"{CONFIG}: {name}" for name in (*public.unknown, *public.code)],
    )


def refuse_existing(into: Path) -> None:
    """
    Raises:
        CheckpointError: there is something of this name.
    """
    if os.path.lexists(into):
        raise CheckpointError(f"{into}: exists; name a new folder")


def write_streamed(
    into: Path,
    fields: Mapping[str, Any],
    planned: Sequence[Planned],
    *,
    carry_from: Path | None = None,
    metadata: Mapping[str, str] | None = None,
    shard_bytes: int = SHARD_BYTES,
    finish: Callable[[Path], object] = lambda folder: None,
    progress: Progress | None = None,
) -> Carried:
    """Write a new model folder in one commit: config.json, the weights as a stream, and a manifest.

    Args:
        fields: of config.json, from `public_config`.
        carry_from: take tokenizer, chat template, generation settings, model card and licence from this folder.
        metadata: notes for the headers of the weights files.
        finish: given the folder when all else is in it; adds files, or raises if something is wrong with it.
    Raises:
        CheckpointError: `into` exists, cannot be written or has no room; or what a part of `planned` raises.
    """
    refuse_existing(into)
    names = model_files(carry_from) if carry_from is not None else []
    carried = [name for name in names if _CARRIED.fullmatch(name)]
    left_behind = [name for name in names if not _CARRIED.fullmatch(name) and not _WRITTEN_ANEW.fullmatch(name)]

    def write(folder: Path) -> None:
        (folder / CONFIG).write_text(json.dumps(dict(fields), indent=2) + "\n", encoding="utf-8")
        for name in carried:
            assert carry_from is not None
            _copy(carry_from / name, folder / name)
        write_tensors(folder, planned, shard_bytes=shard_bytes, metadata=metadata, progress=progress)
        finish(folder)
        manifest.write_manifest(folder)

    try:
        commit.make_folder(into.parent)
        needed, free = sum(tensor.nbytes for tensor in planned), shutil.disk_usage(into.parent).free
        if needed > free:
            raise CheckpointError(f"{into}: takes {needed:,} bytes, and the disk has {free:,} free")
        commit.commit_folder(into, write)
    except OSError as error:
        raise CheckpointError(f"{into}: cannot be written: {error.strerror or error}") from error
    return Carried(carried, left_behind)


def _plan(weights: DiskWeights, dtype: torch.dtype | None, stacked: bool) -> Iterator[Planned]:
    for name in weights.entries:
        expert = _EXPERT.match(name) if stacked else None
        if expert is None:
            yield weights.planned(name, dtype)
        elif expert[2] == "0":
            yield _stack(weights, expert, dtype)


def _stack(weights: DiskWeights, first: re.Match[str], dtype: torch.dtype | None) -> Planned:
    """All experts' matrices of one kind in a layer as one tensor, read one by one."""
    moe = weights.public.config.moe
    assert moe is not None
    names = [f"{first[1]}.{expert}.{first[3]}.weight" for expert in range(moe.experts)]
    target = dtype or reduce(torch.promote_types, {weights.dtype(name) for name in names})

    def parts() -> Iterator[Tensor]:
        return (weights.read(name).to(target)[None] for name in names)

    return Planned(f"{first[1]}.{first[3]}", target, (moe.experts, *weights.entries[names[0]].shape), parts)


def _copy(source: Path, target: Path) -> None:
    with opened(source) as descriptor:
        if (size := os.fstat(descriptor).st_size) > _MOST_CARRIED_BYTES:
            raise CheckpointError(f"{source}: {size:,} bytes; at most {_MOST_CARRIED_BYTES:,} are taken along")
        data = bytearray(size)
        read_into(descriptor, memoryview(data), 0)
    target.write_bytes(data)
