"""What each product of a linear layer multiplies in, for every number format, and which layer gets which format.

    forward            y = x W^T         operands x, W         summed over the input features
    input gradient     dx = dy W         operands dy, W        summed over the output features
    weight gradient    dW = dy^T x       operands dy, x        summed over the tokens

Every operand is quantized from BF16 once for each direction in which it is used, with blocks along the sum. A recipe
names a format for the layers of the blocks, how many blocks at both ends stay as they are, and exceptions.
Papers: Nemotron-H and Nano 2 (FP8), "Pretraining LLMs with NVFP4" (table of section 4 and appendix A), Nemotron 3 Super
(its mix), MoR (arXiv 2512.22804; what its abstract leaves open is an option here), OCP MX.
"""

from dataclasses import dataclass, replace
from typing import Annotated, Literal

from seqloom.core.config import Gt
from seqloom.numerics.options import Fp8Options as Fp8Options
from seqloom.numerics.options import Metric
from seqloom.numerics.options import MorOptions as MorOptions
from seqloom.numerics.options import Nvfp4Options as Nvfp4Options
from seqloom.numerics.scheme import (
    FP8_1X128,
    FP8_128X128,
    FP8_TENSOR,
    MXFP4,
    MXFP8,
    NVFP4,
    NVFP4_2D,
    Scheme,
)

PlainFormat = Literal["fp32", "bf16"]
"""What weights are stored in and the residual stream is computed in."""

Format = Literal[
    "fp32", "bf16", "fp8", "fp8_delayed", "fp8_blockwise", "mxfp8", "nvfp4", "mxfp4", "mor_tensor", "mor_subtensor",
    "mor_nvfp4",
]  # fmt: skip
"""What a module computes in. All but the first two name the formats of the operands of a linear layer's products."""

Recipe = Literal[
    "plain",
    "bf16",
    "fp8_nemotron_h",
    "fp8_delayed",
    "fp8_blockwise",
    "mxfp8",
    "nvfp4",
    "nvfp4_super",
    "mxfp4",
    "mor_tensor",
    "mor_subtensor",
    "mor_nvfp4",
]


@dataclass(frozen=True)
class Choice:
    """A representation chosen at run time, for each part of an operand.

    Attributes:
        ladder: tried in order; the first whose error is at most its threshold is taken, and BF16 if there is none.
        along, across: elements of a part along the sum and across it; None takes the whole axis.
        three_way: the rule of `MorOptions.three_way` for a ladder of E4M3 and E5M2.
    """

    ladder: tuple[Scheme, ...]
    thresholds: tuple[float, ...]
    metric: Metric = "relative"
    along: int | None = None
    across: int | None = None
    three_way: bool = False

    @property
    def representations(self) -> tuple[str, ...]:
        """Names of what can be chosen."""
        return *(scheme.element for scheme in self.ladder), "bf16"


@dataclass(frozen=True)
class Delayed:
    """A scale made from what was seen in earlier steps; the arguments of `AmaxHistory`."""

    length: int
    margin: int


@dataclass(frozen=True)
class Operand:
    """How one operand of a product is held: BF16 as it is without a scheme and a choice.

    Attributes:
        delayed: scaled by earlier steps in place of its own largest magnitude.
        bits: random bits for each number that is rounded stochastically.
        hadamard: transformed along the sum before it is quantized.
    """

    scheme: Scheme | None = None
    stochastic: bool = False
    hadamard: bool = False
    choice: Choice | None = None
    bits: int = 8
    delayed: Delayed | None = None

    @property
    def same_both_ways(self) -> bool:
        """Whether the matrix and its transpose are held alike, so that one quantization serves two directions."""
        schemes = self.choice.ladder if self.choice else (self.scheme,)
        square = all(scheme is None or scheme.along == scheme.across for scheme in schemes)
        part = self.choice is None or self.choice.along == self.choice.across
        return square and part and not self.stochastic and not self.hadamard


PLAIN = Operand()


OPERANDS = {"forward": ("x", "w"), "input_gradient": ("dy", "w"), "weight_gradient": ("dy", "x")}
"""Of each product, in the order in which `Products` has them; a role is "forward.x"."""


@dataclass(frozen=True)
class Products:
    """The operands of the three products, each pair in the order (x, W), (dy, W), (dy, x)."""

    forward: tuple[Operand, Operand]
    input_gradient: tuple[Operand, Operand]
    weight_gradient: tuple[Operand, Operand]

    def with_plain_forward(self) -> "Products":
        return replace(self, forward=(PLAIN, PLAIN))


def products(
    format: Format,
    fp8: Fp8Options = Fp8Options(),  # noqa: B008  # frozen
    nvfp4: Nvfp4Options = Nvfp4Options(),  # noqa: B008
    mor: MorOptions = MorOptions(),  # noqa: B008
) -> Products:
    """What a format of few bits multiplies in."""
    if format in ("fp8", "fp8_delayed"):
        delayed = Delayed(fp8.history, fp8.margin) if format == "fp8_delayed" else None
        x = Operand(_fp8(FP8_TENSOR, "e4m3", fp8.power_of_two or False), delayed=delayed)
        dy = Operand(_fp8(FP8_TENSOR, fp8.gradient or "e5m2", fp8.power_of_two or False), delayed=delayed)
        return Products((x, x), (dy, x), (dy, x))
    if format == "fp8_blockwise":
        power = fp8.power_of_two is not False
        x, w = Operand(_fp8(FP8_1X128, "e4m3", power)), Operand(_fp8(FP8_128X128, "e4m3", power))
        dy = Operand(_fp8(FP8_1X128, fp8.gradient or "e4m3", power))
        return Products((x, w), (dy, w), (dy, x))
    if format == "mxfp8":
        x = Operand(MXFP8)
        return Products((x, x), (x, x), (x, x))
    if format in ("nvfp4", "mxfp4"):
        x = Operand(NVFP4 if format == "nvfp4" else MXFP4)
        assert x.scheme is not None
        tiles = NVFP4_2D if format == "nvfp4" else replace(MXFP4, across=MXFP4.along)
        w = Operand(tiles) if nvfp4.weight_tiles else x
        dy = replace(x, stochastic=nvfp4.stochastic_gradients, bits=nvfp4.sr_bits)
        return Products((x, w), (dy, w), (replace(dy, hadamard=nvfp4.hadamard), replace(x, hadamard=nvfp4.hadamard)))
    each = Operand(choice=_choice(format, mor))
    return Products((each, each), (each, each), (each, each))


def _fp8(scheme: Scheme, element: Literal["e4m3", "e5m2"], power_of_two: bool) -> Scheme:
    return replace(scheme, element=element, scale="power_of_two" if power_of_two else "fp32")


_THRESHOLDS: dict[Metric, tuple[float, float]] = {
    "relative": (0.045, 0.2),
    "relative_l2": (0.05, 0.1),
    "flush": (0.01, 0.1),
    "range": (1.0, 1.0),
}
"""Of FP8 and NVFP4: somewhat above what Gaussian numbers have, 0.0225 and 0.179 relative, 0.027 and 0.096 in norm."""


def _choice(format: Format, mor: MorOptions) -> Choice:
    fp8, fp4 = _THRESHOLDS[mor.metric]
    fp8 = fp8 if mor.threshold is None else mor.threshold
    fp4 = fp4 if mor.nvfp4_threshold is None else mor.nvfp4_threshold
    if format == "mor_tensor":
        return Choice((FP8_TENSOR,), (fp8,), mor.metric)
    if format == "mor_nvfp4":
        return Choice((NVFP4, FP8_TENSOR), (fp4, fp8), mor.metric)
    assert format == "mor_subtensor", format
    sides: dict[str, tuple[int | None, int]] = {"block": (128, 128), "channel": (None, 1), "row_128": (128, 1)}
    along, across = sides[mor.partition]
    e4m3 = Scheme("e4m3", along, across, "gam")
    ladder = (e4m3, replace(e4m3, element="e5m2")) if mor.three_way else (e4m3,)
    return Choice(ladder, (fp8,) * len(ladder), mor.metric, along, across, mor.three_way)


PRODUCTS: dict[str, Products] = {
    name: products(name)
    for name in (
        "fp8", "fp8_delayed", "fp8_blockwise", "mxfp8", "nvfp4", "mxfp4", "mor_tensor", "mor_subtensor", "mor_nvfp4",
    )
}  # fmt: skip
"""The formats of few bits as their papers have them."""


@dataclass(frozen=True)
class Preset:
    """Which format the linear layers of the blocks get.

    Attributes:
        format: of all that nothing else is said of.
        keep_first, keep_last: blocks at the ends that stay in the run's activation format.
        keep_share: of all blocks, at the end, in place of `keep_last`; at least one block.
        rules: exceptions, as (pattern of module names, format; None: the run's activation format).
    """

    format: Format
    keep_first: int = 0
    keep_last: int = 0
    keep_share: Annotated[float, Gt(0)] | None = None
    rules: tuple[tuple[str, Format | None], ...] = ()

    def kept(self, blocks: int) -> tuple[int, int]:
        """How many of so many blocks are kept at each end."""
        return self.keep_first, max(1, round(self.keep_share * blocks)) if self.keep_share else self.keep_last


_SUPER: tuple[tuple[str, Format | None], ...] = (
    *((f"*.{leaf}", None) for leaf in ("q_proj", "k_proj", "v_proj", "o_proj", "fc1_latent_proj", "fc2_latent_proj")),
    ("*.mixer.out_proj", "mxfp8"),  # of Mamba: its NVFP4 form flushed up to 40 % of the values to zero
)

PRESETS: dict[str, Preset] = {
    "fp8_nemotron_h": Preset("fp8", 2, 2),
    "fp8_delayed": Preset("fp8_delayed"),
    "fp8_blockwise": Preset("fp8_blockwise", 2, 2),
    "mxfp8": Preset("mxfp8"),
    "nvfp4": Preset("nvfp4", keep_share=0.15),
    "nvfp4_super": Preset("nvfp4", keep_share=0.15, rules=_SUPER),
    "mxfp4": Preset("mxfp4", keep_share=0.15),
    "mor_tensor": Preset("mor_tensor"),
    "mor_subtensor": Preset("mor_subtensor"),
    "mor_nvfp4": Preset("mor_nvfp4"),
}
"""The recipes in few bits. What lies outside of the blocks (embedding, head, prediction block) and whatever is no
linear layer (norms, router, convolution, scan, softmax) is never quantized by a recipe."""
