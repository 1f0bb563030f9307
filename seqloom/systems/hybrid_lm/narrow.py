"""Tensors whose meaning is lost in narrow numbers: router bias, A_log, D and dt_bias.

A selection bias moves by a thousandth a step, which BF16 rounds away; decays and step sizes act through exponentials
over whole rows. They are FP32 in memory and on disk, in every precision recipe.
"""

import torch

from seqloom.core.errors import ConfigError
from seqloom.systems.hybrid_lm.disk_weights import is_fp32_only
from seqloom.systems.hybrid_lm.model import HybridLM


def refuse_narrow_tensors(model: HybridLM) -> None:
    """
    Raises:
        ConfigError: such a tensor is held in fewer than 32 bits; all are named.
    """
    found = {name: tensor.dtype for name, tensor in model.state_dict().items() if is_fp32_only(name)}
    narrow = [f"{name} ({dtype})" for name, dtype in found.items() if torch.finfo(dtype).bits < 32]
    if narrow:
        more = f" and {len(narrow) - 5} more" if len(narrow) > 5 else ""
        raise ConfigError(f"tensors that must stay in FP32 are narrower: {', '.join(narrow[:5])}{more}")
