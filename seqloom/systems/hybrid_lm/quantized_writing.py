"""A quantized model as tensors and fields of a folder, and the comparison of what was written with what was meant."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from seqloom.core.checkpoint.tensor_folder import Planned
from seqloom.core.errors import CheckpointError
from seqloom.core.progress import Progress
from seqloom.numerics.scheme import FP8_TENSOR, Scheme
from seqloom.ops.quantize import rounded
from seqloom.quantize.calibrate import Calibration
from seqloom.quantize.config import REPRESENTATIONS, QuantFormat, QuantizeConfig
from seqloom.quantize.weights import Weights
from seqloom.systems.hybrid_lm.convert import write_streamed
from seqloom.systems.hybrid_lm.disk_weights import DiskWeights, disk_tensors, expert_names, is_fp32_only
from seqloom.systems.hybrid_lm.model import HybridLM
from seqloom.systems.hybrid_lm.public_config import public_config
from seqloom.systems.hybrid_lm.quantized_config import BESIDE, compressed_config, modelopt_config
from seqloom.systems.hybrid_lm.quantized_matrix import meant, planned_cache_scales, planned_matrix


@dataclass(frozen=True)
class QuantizedModel:
    """A model with what stands for it in few bits.

    Attributes:
        model: unquantized.
        formats: of every site that the presets and patterns do not keep.
        weights: of those whose format is not bf16.
        kept: names of all other sites.
    """

    model: HybridLM
    config: QuantizeConfig
    formats: Mapping[str, QuantFormat]
    weights: Weights
    calibration: Calibration
    kept: Sequence[str]

    def tensors(self) -> Iterator[Planned]:
        """Every tensor of the folder: quantized matrices with their scales, the others in BF16."""
        matrices = {
            name: (site, number)
            for site in self.weights
            for number, name in enumerate(_disk_names(site, len(self.weights[site])))
        }
        for name, tensor in disk_tensors(self.model):
            if name in matrices:
                site, number = matrices[name]
                scheme = REPRESENTATIONS[self.formats[site]].activations or FP8_TENSOR
                scale = _static_scale(scheme, self.calibration.inputs[site])
                module, weight = name.removesuffix(".weight"), self.weights[site][number]
                yield from planned_matrix(self.config.layout, module, self.formats[site], weight, scale)
            else:
                dtype = torch.float32 if is_fp32_only(name) else torch.bfloat16
                yield Planned(name, dtype, tuple(tensor.shape), partial(_cast, tensor, dtype))
        if self.config.kv_cache is not None:
            keys, values = (
                {name: _static_scale(FP8_TENSOR, amax) for name, amax in maxima.items()}
                for maxima in (self.calibration.keys, self.calibration.values)
            )
            yield from planned_cache_scales(keys, values)

    def declaration(self) -> tuple[dict[str, Any], dict[str, Any] | None]:
        """`quantization_config`, and hf_quant_config.json where the layout has one."""
        by_module = {
            name.removesuffix(".weight"): self.formats[site]
            for site in self.weights
            for name in _disk_names(site, len(self.weights[site]))
        }
        # Experts are named by their layer; router and convolutions are no linear layers here, but are for readers.
        names = dict.fromkeys(re.sub(r"\.experts\..*", ".experts*", name) for name in self.kept)
        plain = [name for name in names if not name.startswith("mtp.")]
        mtp = ["mtp*"] if len(plain) < len(names) else []
        listed = [*plain, *mtp, "backbone.embeddings", "backbone.layers.*.mixer.conv1d", "backbone.layers.*.mixer.gate"]
        if self.config.layout == "modelopt":
            return modelopt_config(by_module, listed, self.config.kv_cache is not None)
        (format,) = set(by_module.values())
        return compressed_config(format, listed), None

    def write(
        self,
        into: Path,
        report: Mapping[str, Any],
        *,
        report_name: str,
        carried: Mapping[str, Any],
        carry_from: Path,
        progress: Progress | None = None,
    ) -> None:
        """Write the folder; it appears only after every matrix, read back, equals what was meant bit for bit.

        Args:
            report: of what quantization cost, kept in the file `report_name`.
            carried: facts of the original config.json to keep.
            carry_from: the original's folder.
        Raises:
            CheckpointError: `into` exists or cannot be written, or a matrix read back differs.
        """
        fields, beside = self.declaration()

        def finish(written: Path) -> None:
            for name, content in ((BESIDE, beside), (report_name, report)):
                if content is not None:
                    (written / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
            self.check(written)

        public = public_config(self.model.config, "bf16", carried) | {"quantization_config": fields}
        write_streamed(into, public, list(self.tensors()), carry_from=carry_from, finish=finish, progress=progress)

    def check(self, written: Path) -> None:
        """
        Raises:
            CheckpointError: the folder cannot be read, or a matrix read back differs from what was meant.
        """
        again = DiskWeights(written)
        again.check(self.model)
        for site, matrices in self.weights.items():
            for name, matrix in zip(_disk_names(site, len(matrices)), matrices, strict=True):
                wanted = meant(self.config.layout, self.formats[site], matrix).cpu()
                if not torch.equal(again.dequantized(name), wanted):
                    raise CheckpointError(f"{written}: {name}: read back, it differs from what was written")


def _cast(tensor: Tensor, dtype: torch.dtype) -> list[Tensor]:
    return [tensor.to(dtype)]


def _static_scale(scheme: Scheme, amax: Tensor) -> Tensor:
    """The multiplier of a tensor of this largest magnitude; 1 where it is 0."""
    scale = rounded(amax.new_zeros(1, 16), scheme, 1, amax=amax).scale
    return torch.where(scale == 0, 1.0, scale)


def _disk_names(site: str, matrices: int) -> list[str]:
    return expert_names(site, matrices) or [f"{site}.weight"]
