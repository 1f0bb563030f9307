"""What a user may ask of a quantization, and the formats there are.

format           weights                          activations              bits
fp8              E4M3, one scale per matrix       E4M3, one static scale   8
nvfp4            E2M1 under E4M3 per 16           the same, static scale   4.5
nvfp4_w4a16      E2M1 under E4M3 per 16           BF16                     4.5
bf16             as trained, rounded to BF16      BF16                     16

Paper: Nemotron 3 Nano (FP8), Super (mixed, AutoQuantize at 4.75 bits), Ultra (four over six).
"""

from dataclasses import dataclass
from typing import Annotated, Literal

from seqloom.core.config import Ge, config
from seqloom.core.errors import ConfigError
from seqloom.numerics.scheme import (
    FP8_TENSOR,
    NVFP4,
    NVFP4_FOUR_OVER_SIX,
    NVFP4_MSE,
    NVFP4_PTQ,
    Scheme,
)

QuantFormat = Literal["fp8", "nvfp4", "nvfp4_w4a16", "bf16"]
WeightScales = Literal["max", "mse", "four_over_six"]
Recipe = Literal["fp8", "nvfp4", "nvfp4_w4a16", "mixed"]
Kept = Literal["nemotron", "nano3", "conservative", "linears"]
Layout = Literal["modelopt", "compressed-tensors"]

BF16_BITS = 16.0


@dataclass(frozen=True)
class Representation:
    """How a format holds the two operands of a product.

    Attributes:
        weights: by how the scales of the weights are found; a format without that choice has one entry under "max".
        activations: with static scales; None leaves activations as they are.
        multiple: what the width of the contraction axis must be a multiple of.
    """

    weights: dict[WeightScales, Scheme]
    activations: Scheme | None
    multiple: int

    def weight_scheme(self, scales: WeightScales) -> Scheme:
        return self.weights.get(scales, self.weights["max"])


_NVFP4_WEIGHTS: dict[WeightScales, Scheme] = {
    "max": NVFP4_PTQ,
    "mse": NVFP4_MSE,
    "four_over_six": NVFP4_FOUR_OVER_SIX,
}

REPRESENTATIONS: dict[QuantFormat, Representation] = {
    "fp8": Representation({"max": FP8_TENSOR}, FP8_TENSOR, 1),
    "nvfp4": Representation(_NVFP4_WEIGHTS, NVFP4, 16),
    "nvfp4_w4a16": Representation(_NVFP4_WEIGHTS, None, 16),
}
"""Activations are quantized while computing, so theirs is the order of operations of kernels, not of export."""


def bits_of(format: QuantFormat) -> float:
    """Bits per weight, block scales included."""
    if format == "bf16":
        return BF16_BITS
    # One FP32 number per matrix weighs nothing; the block scale of 16 elements weighs half a bit.
    return REPRESENTATIONS[format].weights["max"].bits_per_element


@config
class QuantizeConfig:
    """A post-training quantization."""

    recipe: Recipe = "nvfp4"
    """One format for all linear layers that are not kept, or "mixed": experts and MLPs in NVFP4, the rest in FP8."""
    weights: WeightScales = "max"
    """How scales of NVFP4 weights are found: from the largest magnitude, by least squared error over all E4M3 scales,
    or the better of two (the largest maps to 6, or to 4)."""
    budget_bits: float | None = None
    """Choose among the recipe's formats, FP8 and BF16 for every layer, with the least harm to the loss, so that the
    layers that are not kept take at most so many bits per weight."""
    kept: Kept | None = None
    """Which layers stay BF16 beside head, embeddings, router, convolutions, norms and prediction block: "nemotron"
    keeps attention and latent projections, "nano3" also the Mamba layer before each attention layer, "conservative" all
    Mamba projections, "linears" none. None takes nano3; for a budget or "mixed", nemotron."""
    keep: tuple[str, ...] = ()
    """Shell patterns over module names of further layers that stay BF16."""
    layout: Layout = "modelopt"
    """"modelopt" is read by vLLM and TensorRT-LLM, "compressed-tensors" by transformers; both are read here. The second
    has one format, beside BF16, for all layers."""
    kv_cache: Literal["fp8"] | None = None
    """Store scales for keys and values in FP8."""
    rows: Annotated[int, Ge(1)] = 64
    """Rows of text to calibrate on, and at most as many to measure on."""

    def __post_init__(self) -> None:
        if self.budget_bits is not None and self.recipe == "mixed":
            raise ConfigError(
                "recipe: 'mixed' has its formats fixed; with budget_bits name the narrowest format that may be chosen: "
                "nvfp4, nvfp4_w4a16 or fp8"
            )
        if self.layout == "compressed-tensors" and (self.recipe == "mixed" or self.kv_cache is not None):
            wrong = "recipe: 'mixed' is" if self.recipe == "mixed" else f"kv_cache: '{self.kv_cache}' is"
            raise ConfigError(f"{wrong} for the layout modelopt; transformers decodes all layers by one format")
        if self.weights != "max" and self.recipe == "fp8":
            raise ConfigError(f"weights: '{self.weights}' is for NVFP4; the recipe fp8 has 'max' only")

    @property
    def kept_preset(self) -> Kept:
        return self.kept or ("nemotron" if self.budget_bits is not None or self.recipe == "mixed" else "nano3")

    @property
    def candidates(self) -> tuple[QuantFormat, ...]:
        """The formats that a budget chooses from, narrowest first."""
        assert self.recipe != "mixed"
        if self.layout == "compressed-tensors":
            return (self.recipe, "bf16")
        return ("fp8", "bf16") if self.recipe == "fp8" else (self.recipe, "fp8", "bf16")
