"""The weights of a model folder under one set of names, whatever layout they are stored in.

Canonical are the names of the published files: `backbone.` in front, every expert's matrix a tensor of its own,
[out, in]. Read as the same are

    model.* for backbone.*, and backbone.embedding.weight for backbone.embeddings.weight
    mixer.experts.up_proj, .down_proj               all experts stacked, [E, out, in] or [E, in, out]
    mixer.experts.gate_and_up_projs, .down_projs    stacked [E, in, out], as AutoModel names them

The two orders of a stack are told apart by shape. Where both widths are equal nothing in the tensor tells: then the
note `expert_axes` in the file's header decides (files written here carry it), and without it the folder is refused,
since a guess would load transposed matrices that fit.

Router bias, A_log, D and dt_bias are FP32 when read from here, whatever they are stored in. Quantized matrices (see
`quantized_matrix.py`) are dequantized exactly, and rounded once if the configuration says bfloat16.
"""

import math
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from seqloom.core.checkpoint import manifest
from seqloom.core.checkpoint.json_file import shown
from seqloom.core.checkpoint.tensor_folder import MOST_TENSORS, Planned, TensorFolder
from seqloom.core.errors import CheckpointError
from seqloom.numerics.precision import dtype_of
from seqloom.ops.packed_linear import PackedWeight
from seqloom.systems.hybrid_lm.model import HybridLM
from seqloom.systems.hybrid_lm.public_config import open_public
from seqloom.systems.hybrid_lm.quantized_config import read_declared
from seqloom.systems.hybrid_lm.quantized_folder import CACHE_SCALE, check_scales, find_packed
from seqloom.systems.hybrid_lm.quantized_matrix import Packed, read_scale

CONFIG = "config.json"
EXPERT_AXES, OUT_IN, IN_OUT = "expert_axes", "expert out in", "expert in out"

_FP32_ONLY = re.compile(r"\.(A_log|D|dt_bias|e_score_correction_bias)$")
_STACKED = re.compile(r"^(.*\.mixer\.experts)\.(up_proj|down_proj)$")
_STACKED_ON_DISK = re.compile(
    r"^(?P<experts>.*\.mixer\.experts)\.(?:(?P<matrix>up_proj|down_proj)(?:\.weight)?|(?P<turned>gate_and_up|down)_projs)$"
)
_PART_BYTES = 2 << 20


class Weight(NamedTuple):
    """A canonical tensor before it is read.

    Attributes:
        dtype: what it is stored in; of a quantized matrix, what it is read as.
        source: name of the stored tensor.
        expert: its place in a stored stack.
        turned: stored with its axes swapped.
        packed: how a quantized matrix is stored.
    """

    dtype: torch.dtype
    shape: tuple[int, ...]
    source: str
    expert: int | None = None
    turned: bool = False
    packed: Packed | None = None


class DiskWeights:
    """The weights of one folder.

    Attributes:
        public: what config.json says.
        entries: canonical name -> what is known of it; after `check`, exactly the model's, in its order.
    """

    def __init__(self, folder: Path, *, verified: bool = False) -> None:
        """Read config.json and all headers; a folder with a manifest is compared with it first.

        Args:
            verified: the caller has just compared it.
        Raises:
            CheckpointError: a file is missing, damaged or refused; which, and why.
            ConfigError: the configuration contradicts itself or asks for what is not built here.
        """
        if not verified and (folder / manifest.NAME).exists():
            needed = re.compile(r"config\.json|hf_quant_config\.json|model(-.*)?\.safetensors(\.index\.json)?")
            if problems := manifest.verify(folder, needed.fullmatch):
                raise CheckpointError(f"{folder}: not as it was written: {', '.join(problems)}")
        self.folder = folder
        self.public = open_public(folder / CONFIG)
        self._declared = read_declared(folder, self.public.quantization)
        self._tensors = TensorFolder(folder)
        self.entries: dict[str, Weight] = {}
        self._packed, quantized = find_packed(self._declared, self._tensors) if self._declared else ([], set())
        dtype = dtype_of(self.public.format)
        for packed in self._packed:
            name = re.sub(r"^model\.", "backbone.", f"{packed.module}.weight")
            self.entries[name] = Weight(dtype, packed.shape, packed.codes, packed=packed)
        for source, entry in self._tensors.entries.items():
            if source in quantized:
                continue
            if entry.dtype not in (torch.float32, torch.bfloat16):
                raise CheckpointError(
                    f"{entry.file}: tensor {shown(source)} is stored in {entry.dtype}; only float32 and bfloat16 are "
                    "read here"
                )
            for name, weight in self._canonical(source):
                if name in self.entries:
                    raise CheckpointError(
                        f"{folder}: tensor {shown(name)} is there twice, as {shown(self.entries[name].source)} and "
                        f"{shown(source)}"
                    )
                self.entries[name] = weight
            if len(self.entries) > MOST_TENSORS:
                raise CheckpointError(f"{folder}: more than {MOST_TENSORS:,} tensors")

    @property
    def stored_bytes(self) -> int:
        """Bytes of all tensors in the files."""
        return sum(entry.stop - entry.start for entry in self._tensors.entries.values())

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors as they are read."""
        return sum(math.prod(weight.shape) * weight.dtype.itemsize for weight in self.entries.values())

    def check(self, model: HybridLM) -> None:
        """Names and shapes must be those of the model.

        Raises:
            CheckpointError: tensors are missing, unknown or misshapen, by name.
        """
        wanted = {name: tuple(tensor.shape) for name, tensor in disk_tensors(model)}
        missing = [name for name in wanted if name not in self.entries]
        unknown = [name for name in self.entries if name not in wanted]
        if missing or unknown:
            told = [f"missing: {_listed(missing)}"] if missing else []
            told += [f"unknown: {_listed(unknown)}"] if unknown else []
            hint = self._hint(missing, unknown)
            raise CheckpointError(
                f"{self.folder}: {len(missing)} tensors missing, {len(unknown)} unknown; {'; '.join(told)}{hint}"
            )
        for name, shape in wanted.items():
            if self.entries[name].shape != shape:
                weight = self.entries[name]
                raise CheckpointError(
                    f"{self._tensors.entries[weight.source].file}: tensor {shown(name)} has shape {weight.shape}, "
                    f"the configuration asks for {shape}"
                )
        self.entries = {name: self.entries[name] for name in wanted}
        check_scales(self._packed, self._tensors)
        for name in self.cache_scales():
            if f"{name.rpartition('.')[0]}.weight" not in wanted:
                raise CheckpointError(f"{self.folder}: tensor {shown(name)} scales keys or values of no layer")
        self._warn()

    def dtype(self, name: str) -> torch.dtype:
        """The number format in which a tensor is read."""
        return torch.float32 if is_fp32_only(name) else self.entries[name].dtype

    def read(self, name: str, rows: slice | None = None) -> Tensor:
        """A tensor, or consecutive rows of it, in memory of its own.

        Raises:
            CheckpointError: the file cannot be read (any more), or memory does not suffice.
        """
        weight = self.entries[name]
        if weight.packed is not None:
            tensor = self.dequantized(name, rows)
        elif weight.expert is None:
            tensor = self._tensors.read(weight.source, rows)
        else:
            tensor = self._tensors.read(weight.source, slice(weight.expert, weight.expert + 1))[0]
            tensor = tensor.T.contiguous() if weight.turned else tensor
            tensor = tensor if rows is None else tensor[rows]
        return tensor.to(self.dtype(name))

    def dequantized(self, name: str, rows: slice | None = None) -> Tensor:
        """A quantized matrix, or consecutive rows of it, exactly: in FP32."""
        packed = self.entries[name].packed
        assert packed is not None
        return packed.dequantize(self._tensors, rows)

    def packed(self, name: str) -> PackedWeight | None:
        """A quantized matrix as it is stored, None if it is one of plain numbers; raises as `read`, and where a code
        means no number."""
        packed = self.entries[name].packed
        return None if packed is None else packed.as_stored(self._tensors)

    @property
    def fp8_cache(self) -> bool:
        """Whether the folder says that keys and values are to be kept in FP8."""
        return self._declared is not None and self._declared.fp8_cache

    def cache_scales(self) -> dict[str, float]:
        """The multipliers of cached keys and values, by canonical names like `backbone.layers.3.mixer.k_proj.k_scale`.

        Raises:
            CheckpointError: one is no finite number above 0.
        """
        sources = [name for name in self._tensors.entries if CACHE_SCALE.search(name)] if self._declared else []
        return {re.sub(r"^model\.", "backbone.", name): read_scale(self._tensors, name) for name in sources}

    def read_into(self, name: str, tensor: Tensor) -> None:
        """The same into a tensor of any dtype and device, with one copy where nothing has to be changed."""
        weight = self.entries[name]
        straight = tensor.dtype == weight.dtype and tensor.device.type == "cpu" and tensor.is_contiguous()
        if straight and not weight.turned and weight.packed is None:
            rows = None if weight.expert is None else slice(weight.expert, weight.expert + 1)
            self._tensors.read_into(weight.source, tensor, rows)
        else:
            tensor.copy_(self.read(name))

    def planned(self, name: str, dtype: torch.dtype | None = None) -> Planned:
        """The tensor as something to be written, read in small parts; FP32-only tensors keep to FP32.

        Args:
            dtype: cast to this; None keeps the stored one.
        """
        stored = self.dtype(name)
        target = stored if dtype is None or is_fp32_only(name) else dtype
        shape = self.entries[name].shape

        def parts() -> Iterator[Tensor]:
            for rows in self.pieces(name):
                yield self.read(name, rows).to(target)

        return Planned(name, target, shape, parts)

    def pieces(self, name: str) -> Iterator[slice | None]:
        """Rows of a tensor, or None for all, such that one piece after another takes little memory."""
        weight = self.entries[name]
        if weight.expert is not None:
            yield None
            return
        row = math.prod(weight.shape[1:]) * weight.dtype.itemsize
        step = max(1, _PART_BYTES // max(1, row))
        for start in range(0, weight.shape[0], step):
            yield slice(start, start + step)

    def _canonical(self, source: str) -> Iterator[tuple[str, Weight]]:
        """The canonical tensors that a stored one holds."""
        entry = self._tensors.entries[source]
        name = re.sub(r"^model\.", "backbone.", source)
        if name == "backbone.embedding.weight":
            name = "backbone.embeddings.weight"
        stacked = _STACKED_ON_DISK.match(name)
        moe, width = self.public.config.moe, self.public.config.width
        if stacked is None or moe is None:
            yield name, Weight(entry.dtype, entry.shape, source)
            return
        up = stacked["matrix"] == "up_proj" or stacked["turned"] == "gate_and_up"
        inner = moe.latent_width or width
        shape = (moe.expert_width, inner) if up else (inner, moe.expert_width)
        turned = self._is_turned(source, (moe.experts, *shape), always=stacked["turned"] is not None)
        for expert in range(moe.experts):
            one = f"{stacked['experts']}.{expert}.{'up' if up else 'down'}_proj.weight"
            yield one, Weight(entry.dtype, shape, source, expert, turned)

    def _is_turned(self, source: str, shape: tuple[int, int, int], always: bool) -> bool:
        """Whether a stack is [E, in, out] instead of `shape`, which is [E, out, in]."""
        entry = self._tensors.entries[source]
        swapped = (shape[0], shape[2], shape[1])
        allowed = {swapped} if always else {shape, swapped}
        if entry.shape not in allowed:
            raise CheckpointError(
                f"{entry.file}: tensor {shown(source)} has shape {entry.shape}, the configuration asks for "
                f"{' or '.join(map(str, sorted(allowed)))}"
            )
        if always or shape != swapped:
            return always or entry.shape == swapped
        axes = self._tensors.metadata.get(EXPERT_AXES)
        if axes not in (OUT_IN, IN_OUT):
            raise CheckpointError(
                f"{entry.file}: tensor {shown(source)} stacks square matrices, and nothing says whether they are "
                f"[out, in] or [in, out]; the header's note '{EXPERT_AXES}' must be '{OUT_IN}' or '{IN_OUT}'"
            )
        return axes == IN_OUT

    def _hint(self, missing: list[str], unknown: list[str]) -> str:
        """What such a list of names usually means."""
        if any(name.endswith(("_scale", "_scale_2")) for name in unknown):
            return "; these are scales of weights that are quantized, but nothing in the folder says how"
        if missing and not unknown and all(name.startswith("mtp.") for name in missing):
            return (
                "; the whole prediction block is missing (transformers leaves it out when it saves): set "
                "num_nextn_predict_layers to 0 in config.json to load the model without it"
            )
        if unknown and all(name.startswith("mtp.") for name in unknown):
            blocks = self.public.mtp_blocks
            return f"; num_nextn_predict_layers is {blocks}, and models here have at most one prediction block"
        return ""

    def _warn(self) -> None:
        if self.public.mtp_blocks > 1:
            warnings.warn(
                f"{self.folder / CONFIG}: num_nextn_predict_layers = {self.public.mtp_blocks}, but the weights hold "
                "one prediction block, which is repeated; read as 1",
                stacklevel=4,
            )
        collapsed = [name for name in self.entries if self._is_collapsed(name)]
        if collapsed:
            warnings.warn(
                f"{self.folder}: {len(collapsed)} router biases were stored in bfloat16 and have collapsed to few "
                f"values ({_listed(collapsed)}). Trained ones lie near 60 and differ by less than 0.25, which bfloat16 "
                "cannot tell apart; experts will be chosen almost without them. Use a copy that kept them in FP32",
                stacklevel=4,
            )

    def _is_collapsed(self, name: str) -> bool:
        """Whether a router bias was rounded to steps that swallow the differences between experts."""
        if not name.endswith(".e_score_correction_bias") or self.entries[name].dtype == torch.float32:
            return False
        bias = self.read(name)
        return bool(bias.abs().max() > 1) and 2 * len(bias.unique()) < len(bias)


def disk_weights(folder: Path, *, verified: bool = False) -> DiskWeights:
    """Open the weights of a folder and check that they are exactly those its config.json asks for.

    Args and raises as `DiskWeights` and its `check`.
    """
    weights = DiskWeights(folder, verified=verified)
    with torch.device("meta"):
        model = HybridLM(weights.public.config)
    weights.check(model)
    return weights


def disk_tensors(model: HybridLM) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of a model under its canonical name; stacked experts become one tensor each."""
    for name, tensor in model.state_dict().items():
        names = expert_names(name, len(tensor))
        yield from zip(names, tensor, strict=True) if names else [(name, tensor)]


def expert_names(name: str, experts: int) -> list[str]:
    """The canonical names of what a model holds as one stack; none for a tensor that is no stack."""
    stacked = _STACKED.match(name)
    return [f"{stacked[1]}.{expert}.{stacked[2]}.weight" for expert in range(experts)] if stacked else []


def is_fp32_only(name: str) -> bool:
    """Whether a tensor stays FP32 whatever the rest is stored in."""
    return _FP32_ONLY.search(name) is not None


def _listed(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
