"""One GGUF file of a model and its tokenizer, which llama.cpp and what is built on it open.

llama.cpp knows two shapes of this family: `nemotron_h`, with MLP layers, and `nemotron_h_moe`, with experts, which can
be brought to hold MLP layers as well (`gguf_mixed`). It tells the kinds of layers apart by two lists: a layer without
key-value heads and without a feed-forward width is Mamba.

    ours                                    theirs
    A_log [H]                               ssm_a = -exp(A_log), [H, 1]
    mixer.norm [d]                          ssm_norm, [G, d / G]
    experts 0 to E-1, [m, i] each           ffn_up_exps, [E, m, i]
    prediction block: layers * and E        one more layer, with `nextn` tensors

Matrices are written in the format asked for; norms, convolutions, routers and what steers the scan always in FP32.
Source: the GGUF specification, and the names and keys that llama.cpp's loader of these two shapes asks for.
"""

import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from seqloom.core.checkpoint import commit
from seqloom.core.errors import CheckpointError
from seqloom.core.extras import require
from seqloom.core.progress import Progress
from seqloom.nn.pattern import parse_pattern
from seqloom.systems.hybrid_lm.config import HybridConfig
from seqloom.systems.hybrid_lm.disk_weights import DiskWeights, disk_weights
from seqloom.systems.hybrid_lm.gguf_mixed import as_shared, idle_experts, is_mixed
from seqloom.systems.hybrid_lm.gguf_shape import add_shape, has_block, refuse_unknown
from seqloom.systems.hybrid_lm.gguf_tokenizer import write_tokenizer

GgufFormat = Literal["keep", "bf16", "fp32", "q8_0", "q4_0"]
"""Of matrices. q8_0 and q4_0 round in blocks of 32 of a row; a matrix whose rows are no multiple of it is in BF16."""

_NAMES = {
    "in_proj.weight": "ssm_in.weight", "out_proj.weight": "ssm_out.weight", "conv1d.weight": "ssm_conv1d.weight",
    "conv1d.bias": "ssm_conv1d.bias", "dt_bias": "ssm_dt.bias", "A_log": "ssm_a", "D": "ssm_d",
    "norm.weight": "ssm_norm.weight",
    "q_proj.weight": "attn_q.weight", "k_proj.weight": "attn_k.weight",
    "v_proj.weight": "attn_v.weight", "o_proj.weight": "attn_output.weight",
    "up_proj.weight": "ffn_up.weight", "down_proj.weight": "ffn_down.weight",
    "gate.weight": "ffn_gate_inp.weight", "gate.e_score_correction_bias": "exp_probs_b.bias",
    "experts.0.up_proj.weight": "ffn_up_exps.weight", "experts.0.down_proj.weight": "ffn_down_exps.weight",
    "shared_experts.up_proj.weight": "ffn_up_shexp.weight", "shared_experts.down_proj.weight": "ffn_down_shexp.weight",
    "fc1_latent_proj.weight": "ffn_latent_down.weight", "fc2_latent_proj.weight": "ffn_latent_up.weight",
}  # fmt: skip
"""Tensors of a mixer."""
_AROUND = {
    "backbone.embeddings.weight": "token_embd.weight",
    "backbone.norm_f.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
_AHEAD = {
    "0.enorm.weight": "nextn.enorm.weight",
    "0.hnorm.weight": "nextn.hnorm.weight",
    "0.eh_proj.weight": "nextn.eh_proj.weight",
    "1.norm.weight": "post_attention_norm.weight",
    "1.final_layernorm.weight": "nextn.shared_head_norm.weight",
}
"""Tensors of the prediction block outside its mixers."""
_FP32 = re.compile(r"norm\.weight|conv1d|ssm_(a|d|dt)\b|ffn_gate_inp|exp_probs_b")
_BLOCK = 32


@dataclass(frozen=True)
class Written:
    """What a GGUF file holds.

    Attributes:
        architecture: what llama.cpp calls the shape.
        stored_as: bytes in each number format.
        remarks: what differs there, in whole sentences.
    """

    architecture: str
    tensors: int
    bytes: int
    stored_as: dict[str, int]
    remarks: list[str]


class Entry(NamedTuple):
    """A tensor to be written."""

    name: str
    shape: tuple[int, ...]
    kind: Any
    read: Callable[[], Tensor]


def write_gguf(
    source: Path, into: Path, *, format: GgufFormat = "keep", verified: bool = False, progress: Progress | None = None
) -> Written:
    """Write a model folder as one GGUF file, tensor by tensor.

    Args:
        source: a model folder in any dialect and layout, with its tokenizer.
        into: must not exist.
        verified: the caller has just compared the source with its manifest.
    Raises:
        ConfigError: llama.cpp has no such model; or the package gguf is not installed.
        CheckpointError, DataError: model or tokenizer cannot be read; or `into` exists or cannot be written.
    """
    gguf = require(None, "gguf")
    if os.path.lexists(into):
        raise CheckpointError(f"{into}: exists; name a new file")
    weights = disk_weights(source, verified=verified)
    config = weights.public.config
    refuse_unknown(config)
    architecture = "nemotron_h_moe" if "E" in config.pattern else "nemotron_h"
    entries = list(_entries(gguf, weights, format))
    temporary = into.with_name(f".{into.name}.tmp")
    try:
        commit.make_folder(into.parent)
        writer = gguf.GGUFWriter(temporary, architecture)
        writer.add_name(into.stem)
        writer.add_file_type(_file_type(gguf, entries))
        # No layer knows positions, so a length that nobody has given bounds nothing.
        writer.add_context_length(int(weights.public.carried.get("max_position_embeddings") or 1 << 20))
        add_shape(gguf, writer, config)
        remarks = write_tokenizer(gguf, writer, source, config.vocab_size)
        _write_tensors(gguf, writer, entries, progress)
        commit.sync(temporary)
        os.replace(temporary, into)
        commit.sync(into.parent)
    except OSError as error:
        raise CheckpointError(f"{into}: cannot be written: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)
    stored_as: dict[str, int] = {}
    for entry in entries:
        stored_as[entry.kind.name] = stored_as.get(entry.kind.name, 0) + _nbytes(gguf, entry)
    if config.mtp is not None and not has_block(config):
        remarks.append("The prediction block is left out: llama.cpp knows one of attention and experts, '*E', only.")
    return Written(architecture, len(entries), sum(stored_as.values()), stored_as, remarks)


def _entries(gguf: Any, weights: DiskWeights, format: GgufFormat) -> Iterator[Entry]:
    config = weights.public.config
    for name in weights.entries:
        if (target := _target(name, config)) is None:
            continue
        shape, read = _shaped(name, weights)
        if is_mixed(config):
            target, shape, read = as_shared(target, shape, read, config)
        yield Entry(target, shape, _kind(gguf, target, shape, weights.dtype(name), format), read)
    for number, letter in enumerate(parse_pattern(config.pattern)):
        if letter == "-" and is_mixed(config):
            for target, shape in idle_experts(config).items():
                kind = _kind(gguf, target, shape, torch.bfloat16, format)
                yield Entry(f"blk.{number}.{target}", shape, kind, partial(torch.zeros, shape))


def _target(name: str, config: HybridConfig) -> str | None:
    """What a tensor is called there; None for one that goes along with another, or nowhere."""
    if name in _AROUND:
        return _AROUND[name]
    place, number, rest = re.fullmatch(r"(backbone|mtp)\.layers\.(\d+)\.(.*)", name).groups()  # type: ignore[union-attr]
    if place == "mtp":
        if not has_block(config):
            return None
        number, inside = len(parse_pattern(config.pattern)), f"{number}.{rest}"
        if inside in _AHEAD:
            return f"blk.{number}.{_AHEAD[inside]}"
    if rest == "norm.weight":
        return f"blk.{number}.attn_norm.weight"
    rest = rest.removeprefix("mixer.")
    if re.match(r"experts\.[1-9]", rest):
        return None
    return f"blk.{number}.{_NAMES[rest]}"


def _shaped(name: str, weights: DiskWeights) -> tuple[tuple[int, ...], Callable[[], Tensor]]:
    """The shape of a tensor there, and how to get it; all of a layer's experts are one."""
    config, shape = weights.public.config, weights.entries[name].shape
    assert config.mamba is not None
    if name.endswith(".A_log"):
        return (*shape, 1), lambda: -weights.read(name).float().exp()[:, None]
    if name.endswith(".D"):
        return (*shape, 1), lambda: weights.read(name)[:, None]
    if name.endswith("conv1d.weight"):
        return (shape[0], shape[2]), lambda: weights.read(name)[:, 0]
    if name.endswith("mixer.norm.weight"):
        grouped = (config.mamba.groups, shape[0] // config.mamba.groups)
        return grouped, lambda: weights.read(name).view(grouped)
    if ".experts.0." in name:
        assert config.moe is not None
        names = [name.replace(".experts.0.", f".experts.{expert}.") for expert in range(config.moe.experts)]
        return (len(names), *shape), lambda: torch.stack([weights.read(each) for each in names])
    return shape, lambda: weights.read(name)


def _kind(gguf: Any, target: str, shape: tuple[int, ...], stored: torch.dtype, format: GgufFormat) -> Any:
    kinds = gguf.GGMLQuantizationType
    if _FP32.search(target):
        return kinds.F32
    if format in ("q8_0", "q4_0") and shape[-1] % _BLOCK == 0:
        return kinds[format.upper()]
    narrow = stored == torch.bfloat16 if format == "keep" else format != "fp32"
    return kinds.BF16 if narrow else kinds.F32


def _nbytes(gguf: Any, entry: Entry) -> int:
    numbers, size = gguf.GGML_QUANT_SIZES[entry.kind]
    return int(torch.Size(entry.shape).numel()) // numbers * size


def _file_type(gguf: Any, entries: list[Entry]) -> Any:
    """What most of the file is, as its header says it."""
    names = {"F32": "ALL_F32", "BF16": "MOSTLY_BF16", "Q8_0": "MOSTLY_Q8_0", "Q4_0": "MOSTLY_Q4_0"}
    return gguf.LlamaFileType[names[max(entries, key=lambda entry: _nbytes(gguf, entry)).kind.name]]


def _write_tensors(gguf: Any, writer: Any, entries: list[Entry], progress: Progress | None) -> None:
    import numpy as np

    for entry in entries:
        numbers, size = gguf.GGML_QUANT_SIZES[entry.kind]
        in_bytes = (*entry.shape[:-1], entry.shape[-1] // numbers * size)
        writer.add_tensor_info(entry.name, in_bytes, np.dtype(np.uint8), _nbytes(gguf, entry), entry.kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for number, entry in enumerate(entries):
        if progress is not None:
            progress("writing GGUF", number / len(entries))
        writer.write_tensor_data(gguf.quants.quantize(entry.read().float().numpy(), entry.kind))
    writer.close()
