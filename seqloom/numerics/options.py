"""Options of the number formats, and which of them have an effect where."""

import dataclasses
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from seqloom.core.config import Ge, config

Metric = Literal["relative", "relative_l2", "flush", "range"]


@config
class Fp8Options:
    """Of the formats fp8, fp8_delayed and fp8_blockwise."""

    gradient: Literal["e4m3", "e5m2"] | None = None
    """Element of the gradients dy; None takes e5m2 with one scale per tensor and e4m3 with blocks."""
    power_of_two: bool | None = None
    """Round scales down to powers of two; None does so with blocks, where BF16 products then are exact."""
    history: Annotated[int, Ge(1)] = 1024
    """Steps whose largest magnitudes fp8_delayed scales by."""
    margin: Annotated[int, Ge(0)] = 0
    """Powers of two that fp8_delayed leaves free above them."""


@config
class Nvfp4Options:
    """Of the formats nvfp4 and mxfp4: the ingredients of the training recipe."""

    hadamard: bool = True
    """Random Hadamard transform of both operands of the weight gradient."""
    stochastic_gradients: bool = True
    """Round the gradients dy stochastically; else to the nearest."""
    sr_bits: Literal[8, 24] = 8
    """Random bits for each number so rounded: 8 as the hardware takes, or 24, which are unbiased."""
    weight_tiles: bool = True
    """One scale for a square tile of weights, so that both passes see the same weights; else for a stretch of a row."""


@config
class MorOptions:
    """Of the formats mor_*: when an operand may be held in fewer bits."""

    threshold: Annotated[float, Ge(0)] | None = None
    """Largest error at which FP8 is taken; None takes that of the metric: 0.045, 0.05, 0.01, 1."""
    nvfp4_threshold: Annotated[float, Ge(0)] | None = None
    """The same for NVFP4, which mor_nvfp4 tries first; None: 0.2, 0.1, 0.1, 1."""
    metric: Metric = "relative"
    """Mean relative error of the elements, norm of the error over the norm, share of elements flushed to zero, or the
    tensor's dynamic range as a share of the format's."""
    partition: Literal["block", "channel", "row_128"] = "block"
    """What mor_subtensor decides about: 128 x 128 elements, a line along the sum, or 128 elements of one."""
    three_way: bool = False
    """mor_subtensor takes E4M3 where its error is no larger than that of E5M2, else E5M2 where the range of the block
    fits it, else BF16; thresholds are not asked."""


_ALL = ("fp8", "fp8_delayed", "fp8_blockwise", "mxfp8", "nvfp4", "mxfp4", "mor_tensor", "mor_subtensor", "mor_nvfp4")
USED_BY = {
    "fp8.gradient": ("fp8", "fp8_delayed", "fp8_blockwise"),
    "fp8.power_of_two": ("fp8", "fp8_delayed", "fp8_blockwise"),
    "fp8.history": ("fp8_delayed",),
    "fp8.margin": ("fp8_delayed",),
    "nvfp4.hadamard": ("nvfp4", "mxfp4"),
    "nvfp4.stochastic_gradients": ("nvfp4", "mxfp4"),
    "nvfp4.sr_bits": ("nvfp4", "mxfp4"),
    "nvfp4.weight_tiles": ("nvfp4", "mxfp4"),
    "mor.threshold": ("mor_tensor", "mor_subtensor", "mor_nvfp4"),
    "mor.nvfp4_threshold": ("mor_nvfp4",),
    "mor.metric": ("mor_tensor", "mor_subtensor", "mor_nvfp4"),
    "mor.partition": ("mor_subtensor",),
    "mor.three_way": ("mor_subtensor",),
    "keep_first": _ALL,
    "keep_last": _ALL,
    "switch_at": _ALL,
    "switch": _ALL,
    "hardware": _ALL,
}
"""Settings that have an effect only where one of these formats may be used."""


def changed(config: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted names and values of the settings that are not the defaults."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from changed(value, f"{field.name}.")
        elif value != field.default:
            yield f"{path}{field.name}", value
