"""Which module computes in which number format: an ordered table of (module-name pattern, format).

The first matching rule wins; modules that no rule names compute in the run's activation format. A rule that matches
nothing is an error, since a misspelt one would silently train something else. Parameters stay FP32 masters under
their usual names in every recipe; a format only says what a linear layer multiplies in.
"""

from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Literal

from seqloom.core.config import config
from seqloom.core.errors import ConfigError

if TYPE_CHECKING:
    import torch
    from torch import nn

Format = Literal["fp32", "bf16"]


@config
class PrecisionRule:
    modules: str
    """Shell pattern over dotted module names, for instance "backbone.layers.*.mixer.q_proj"."""
    format: Format


@config
class PrecisionConfig:
    """The precision recipe of a run."""

    activations: Literal["auto", "fp32", "bf16"] = "auto"
    """Format of the residual stream and of every module without a rule; "auto" takes bf16 where the hardware
    multiplies it natively and fp32 elsewhere, and the choice is stored with the run."""
    rules: tuple[PrecisionRule, ...] = ()


def dtype_of(format: Format) -> "torch.dtype":
    import torch

    return {"fp32": torch.float32, "bf16": torch.bfloat16}[format]


def native_format(device: "torch.device") -> Format:
    """The fastest safe training format of a device: bf16 with hardware support, else fp32."""
    import torch

    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    if device.type == "cpu":
        return "bf16" if torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported() else "fp32"
    return "fp32"


def apply_precision(model: "nn.Module", recipe: PrecisionConfig) -> dict[str, Format]:
    """Set the format of every linear layer (any module with a `format` attribute) and of the residual stream.

    Returns:
        the decision table, module name -> format, in module order.
    Raises:
        ConfigError: a rule matches no module, or "auto" was not resolved before.
    """
    if recipe.activations == "auto":
        raise ConfigError("precision.activations: 'auto' must be resolved for a device before it is applied")
    unused = {rule.modules for rule in recipe.rules}
    table: dict[str, Format] = {}
    for name, module in model.named_modules():
        if not hasattr(module, "format"):
            continue
        chosen: Format = recipe.activations
        for rule in recipe.rules:
            if fnmatchcase(name, rule.modules):
                chosen = rule.format
                unused.discard(rule.modules)
                break
        module.format = chosen
        table[name or "(model)"] = chosen
    if unused:
        raise ConfigError(
            f"precision.rules: no module is matched by {sorted(unused)} (or an earlier rule takes all of its modules); "
            f"modules are named like {', '.join(list(table)[:4])}"
        )
    return table
