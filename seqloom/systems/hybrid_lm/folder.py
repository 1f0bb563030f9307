"""Model folders in the public layout: config.json and safetensors that other tools load as they are.

Names in memory are the names on disk, with one exception: experts are stacked in memory ([E, F, I]) and one tensor
each on disk. `mtp.*` tensors are kept; router biases, A_log, D and dt_bias stay FP32 whatever the rest is stored in.
What may be found in a folder of other origin is the business of `public_config.py` and `disk_weights.py`.
Paper: Nemotron-H, Nano 2, Nemotron 3; layout as in the published checkpoints.
"""

import json
import warnings
from pathlib import Path

import torch

from seqloom.core.checkpoint.json_file import shown
from seqloom.core.checkpoint.tensor_folder import allocate
from seqloom.core.checkpoint.tensors import save_tensors
from seqloom.core.devices import available_bytes
from seqloom.core.errors import CheckpointError
from seqloom.nn.state_formats import StateFormats
from seqloom.numerics.precision import PrecisionConfig, apply_precision
from seqloom.systems.hybrid_lm.disk_weights import CONFIG, DiskWeights, disk_tensors, expert_names
from seqloom.systems.hybrid_lm.model import HybridLM
from seqloom.systems.hybrid_lm.narrow import refuse_narrow_tensors
from seqloom.systems.hybrid_lm.public_config import config_from_public as config_from_public
from seqloom.systems.hybrid_lm.public_config import public_config

WEIGHTS = "model.safetensors"


def write_model(model: HybridLM, folder: Path) -> None:
    """Write config.json and model.safetensors, the weights in the number format they have in memory.

    Raises:
        ConfigError: a tensor that must stay FP32 is narrower.
        CheckpointError: a file cannot be written.
    """
    refuse_narrow_tensors(model)
    narrow = model.lm_head.weight.dtype == torch.bfloat16
    fields = public_config(model.config, "bf16" if narrow else "fp32")
    (folder / CONFIG).write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")
    save_tensors(folder / WEIGHTS, dict(disk_tensors(model)))


def read_model(folder: Path, *, verified: bool = False) -> HybridLM:
    """Open any folder in the public layout, in the number format it is stored in.

    Fields of config.json that nobody here knows are warned about, once and all together.

    Args:
        verified: the caller has just compared the folder with its manifest, which is otherwise done here.
    Raises:
        CheckpointError: a file is missing, damaged or refused, a tensor is missing, unknown or misshapen (each is
            named), or the model does not fit in memory.
        ConfigError: the configuration contradicts itself or asks for what is not built here.
    """
    model, weights = open_model(folder, verified=verified)
    fill_model(model, weights, weights.nbytes)
    return model


def open_model(folder: Path, *, verified: bool) -> tuple[HybridLM, DiskWeights]:
    """A model without memory, and the weights that are exactly its own; raises and warns as `read_model`."""
    weights = DiskWeights(folder, verified=verified)
    with torch.device("meta"):
        model = HybridLM(weights.public.config)
    weights.check(model)
    if weights.public.unknown:
        names = ", ".join(map(shown, weights.public.unknown))
        warnings.warn(f"{folder / CONFIG}: fields not known here, and without effect: {names}", stacklevel=3)
    return model, weights


def fill_model(model: HybridLM, weights: DiskWeights, nbytes: int) -> None:
    """Give an opened model its memory, number formats and weights.

    Args:
        nbytes: that will be taken.
    Raises:
        CheckpointError: they are not free.
    """
    if (free := available_bytes(torch.device("cpu"))) < nbytes:
        raise CheckpointError(f"{weights.folder}: the weights take {nbytes:,} bytes of memory, {free:,} are free")
    apply_precision(model, PrecisionConfig(activations=weights.public.format))
    _materialise(model, weights)
    for name, scale in weights.cache_scales().items():
        attention, _, kind = name.rpartition(".")
        setattr(model.get_submodule(attention.rpartition(".")[0]), kind, scale)
    if weights.fp8_cache:
        model.keep_states(StateFormats(keys_values="fp8"))


def read_weights(model: HybridLM, folder: Path, *, verified: bool = False) -> None:
    """Copy the weights of a folder into a model of the same shapes; exact, as its FP32 holds every stored number.

    Args and raises as `read_model`.
    """
    weights = DiskWeights(folder, verified=verified)
    weights.check(model)
    with torch.no_grad():
        for name, tensor in disk_tensors(model):
            weights.read_into(name, tensor)


def _materialise(model: HybridLM, weights: DiskWeights) -> None:
    """Give a model on the meta device its memory and weights, each tensor in the number format of the file."""
    filled = {}
    for name, tensor in model.state_dict().items():
        experts = expert_names(name, len(tensor))
        parts = experts or [name]
        dtypes = {weights.dtype(part) for part in parts}
        dtype = dtypes.pop() if len(dtypes) == 1 else torch.float32
        filled[name] = allocate(tuple(tensor.shape), dtype, f"{weights.folder}: tensor '{name}'")
        for part, memory in zip(parts, filled[name] if experts else [filled[name]], strict=True):
            weights.read_into(part, memory)
    model.load_state_dict(filled, assign=True)
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    for moe in model.expert_layers():
        moe.gate.load = torch.zeros(moe.gate.experts, dtype=torch.int64)
