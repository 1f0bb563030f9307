"""A quantized folder opened for serving: matrices keep the bits of the file, and are unpacked as they are multiplied.

`read_model` gives the same model with every matrix dequantized, and rounded where the configuration says bfloat16; here
nothing is rounded. A stack of experts whose matrices are not all in one format is dequantized.
Paper: the layouts are those of `quantized_matrix.py`.
"""

from pathlib import Path

from seqloom.nn.linear import Linear
from seqloom.nn.moe import Experts
from seqloom.nn.packed import PackedExperts, PackedLinear, replace
from seqloom.ops.packed_linear import PackedWeight, stack
from seqloom.systems.hybrid_lm.disk_weights import DiskWeights, expert_names
from seqloom.systems.hybrid_lm.folder import fill_model, open_model
from seqloom.systems.hybrid_lm.model import HybridLM


def read_packed(folder: Path, *, verified: bool = False) -> HybridLM:
    """Open a folder of any layout that `read_model` reads; what is not quantized is as there.

    Args and raises as `read_model`, and CheckpointError where a code means no number.
    """
    model, weights = open_model(folder, verified=verified)
    nbytes = weights.nbytes
    for name, module in list(model.named_modules()):
        if isinstance(module, Linear) and (stored := weights.packed(f"{name}.weight")) is not None:
            replace(model, name, PackedLinear(stored, module.format))
            nbytes -= module.weight.numel() * weights.dtype(f"{name}.weight").itemsize
        elif isinstance(module, Experts):
            up, down = (_stack(weights, f"{name}.{each}", len(module.up_proj)) for each in module.hidden_matrices)
            if up is not None and down is not None:
                replace(model, name, PackedExperts(up, down, module.format))
                numbers = module.up_proj.numel() + module.down_proj.numel()
                nbytes -= numbers * weights.dtype(expert_names(f"{name}.up_proj", 1)[0]).itemsize
    fill_model(model, weights, nbytes)
    return model


def _stack(weights: DiskWeights, name: str, experts: int) -> PackedWeight | None:
    """The matrices of all experts, if they are packed in one format."""
    found = [weights.packed(each) for each in expert_names(name, experts)]
    packed = [each for each in found if each is not None]
    if len(packed) < experts or len({each.kind for each in packed}) > 1:
        return None
    return stack(packed)
