"""A scheme: how a matrix is held in few bits, as element format, block shape and kind of scale.

x ≈ element · block scale · tensor scale. Blocks lie along the contraction axis of the product that the matrix enters.
Every recipe, kernel and checkpoint names one of the schemes below; `numerics.quantized` computes them.

Papers: FP8 recipes of Nemotron-H and Nano 2, "Pretraining LLMs with NVFP4" (section 2, appendices), OCP MX, MoR (GAM).
"""

from dataclasses import dataclass
from math import inf
from typing import Literal

ElementName = Literal["e2m1", "e4m3", "e5m2"]
ScaleKind = Literal[
    "fp32",  # largest / amax in FP32
    "power_of_two",  # the same, its mantissa cleared
    "e8m0_ceil",  # MX: the smallest power of two for which nothing saturates
    "e8m0_floor",  # MX as OCP defines it: the top of a block may saturate
    "nvfp4",  # E4M3 per block under one FP32 per tensor, in the order of operations of training
    "nvfp4_ptq",  # the same, in the order of operations of checkpoint export
    "four_over_six",  # per block the better of "the largest maps to 6" and "to 4"
    "nvfp4_mse",  # per block the E4M3 scale of least squared error
    "gam",  # one mantissa per tensor, one power of two per block
]

_ELEMENT_BITS: dict[ElementName, int] = {"e2m1": 4, "e4m3": 8, "e5m2": 8}


@dataclass(frozen=True)
class Scheme:
    """How a matrix is represented."""

    element: ElementName
    along: int | None = None
    """Elements of a block along the contraction axis; None takes the whole axis."""
    across: int | None = None
    """Elements of a block across it; None takes the whole axis, so by default one scale serves the tensor."""
    scale: ScaleKind = "fp32"

    @property
    def per_tensor(self) -> bool:
        """Whether one scale serves the whole tensor."""
        return self.along is None and self.across is None

    @property
    def bits_per_element(self) -> float:
        """Bits of an element and its share of the block scale; scales of whole axes and tensors weigh nothing."""
        scale_bits = 32 if self.scale in ("fp32", "power_of_two") else 8
        return _ELEMENT_BITS[self.element] + scale_bits / ((self.along or inf) * (self.across or inf))

    @property
    def exact_in_bf16(self) -> bool:
        """Whether element times block scale always fits BF16: at most 6 significant bits under FP4's E4M3 scales, at
        most 4 under powers of two. An arbitrary FP32 block scale needs FP32."""
        return self.per_tensor or self.scale != "fp32"


FP8_TENSOR = Scheme("e4m3")
FP8_TENSOR_E5M2 = Scheme("e5m2")
FP8_ROW = Scheme("e4m3", None, 1)
FP8_1X128 = Scheme("e4m3", 128, 1, "power_of_two")
FP8_128X128 = Scheme("e4m3", 128, 128, "power_of_two")
FP8_1X128_FP32 = Scheme("e4m3", 128, 1)
FP8_128X128_FP32 = Scheme("e4m3", 128, 128)
GAM_128X128 = Scheme("e4m3", 128, 128, "gam")
NVFP4 = Scheme("e2m1", 16, 1, "nvfp4")
NVFP4_2D = Scheme("e2m1", 16, 16, "nvfp4")
NVFP4_PTQ = Scheme("e2m1", 16, 1, "nvfp4_ptq")
NVFP4_FOUR_OVER_SIX = Scheme("e2m1", 16, 1, "four_over_six")
NVFP4_MSE = Scheme("e2m1", 16, 1, "nvfp4_mse")
MXFP8 = Scheme("e4m3", 32, 1, "e8m0_ceil")
MXFP8_FLOOR = Scheme("e4m3", 32, 1, "e8m0_floor")
MXFP4 = Scheme("e2m1", 32, 1, "e8m0_ceil")
MXFP4_FLOOR = Scheme("e2m1", 32, 1, "e8m0_floor")

SCHEMES: dict[str, Scheme] = {
    "fp8_tensor": FP8_TENSOR,
    "fp8_tensor_e5m2": FP8_TENSOR_E5M2,
    "fp8_row": FP8_ROW,
    "fp8_1x128": FP8_1X128,
    "fp8_128x128": FP8_128X128,
    "fp8_1x128_fp32": FP8_1X128_FP32,
    "fp8_128x128_fp32": FP8_128X128_FP32,
    "gam_128x128": GAM_128X128,
    "nvfp4": NVFP4,
    "nvfp4_2d": NVFP4_2D,
    "nvfp4_ptq": NVFP4_PTQ,
    "nvfp4_four_over_six": NVFP4_FOUR_OVER_SIX,
    "nvfp4_mse": NVFP4_MSE,
    "mxfp8": MXFP8,
    "mxfp8_floor": MXFP8_FLOOR,
    "mxfp4": MXFP4,
    "mxfp4_floor": MXFP4_FLOOR,
}
