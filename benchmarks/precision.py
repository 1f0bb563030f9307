"""Number formats of few bits where no unit computes in them: rounding, and training steps beside BF16.

    python -m benchmarks precision --only 'round-nvfp4*' 'step-30m-*' --threads 2

    round-SCHEME           a matrix of BF16 rounded to a scheme and back        beside the reference in torch
    step-SIZE-RECIPE       a training step (forward, backward, AdamW)           beside the same step in BF16

Gate of a rounding: the reference's numbers, bit for bit. Gate of a step: the loss before it is that of the reference
rounding within 0.1 %, as sums are free in their order. The ceiling of a rounding is reading its input and writing its
output once; that of a step is its products in BF16, so that what emulation costs shows in it.
"""

from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from benchmarks.case import Case, Disagreement, Line
from benchmarks.ceiling import arithmetic_rate, copy_rate
from benchmarks.models import SIZES, TOY, build, parameters, training_flops
from benchmarks.ops import kernels
from benchmarks.pairing import OURS, in_turns, plain, short
from benchmarks.train import batch, targets_of
from seqloom.numerics.hadamard import DEFAULT_SIGNS
from seqloom.numerics.precision import PrecisionConfig, apply_precision
from seqloom.numerics.scheme import SCHEMES
from seqloom.ops.kernels import table
from seqloom.ops.quantize import Rounded, rounded
from seqloom.systems.hybrid_lm.config import HybridConfig

BF16 = "bf16"
RECIPES = ("fp8_nemotron_h", "fp8_blockwise", "mxfp8", "nvfp4", "mor_tensor")
SAME_LOSS = 1e-3
SIDE = 2048
KEY = 7

ROUNDINGS: dict[str, tuple[str, int, bool, bool]] = {
    "fp8_tensor": ("fp8_tensor", 1, False, False),
    "fp8_1x128": ("fp8_1x128", 1, False, False),
    "fp8_1x128-columns": ("fp8_1x128", 0, False, False),
    "fp8_128x128": ("fp8_128x128", 1, False, False),
    "gam_128x128": ("gam_128x128", 1, False, False),
    "mxfp8": ("mxfp8", 1, False, False),
    "mxfp4": ("mxfp4", 1, False, False),
    "nvfp4": ("nvfp4", 1, False, False),
    "nvfp4-tiles": ("nvfp4_2d", 1, False, False),
    "nvfp4-stochastic": ("nvfp4", 1, True, False),
    "nvfp4-hadamard-columns": ("nvfp4", 0, False, True),
    "nvfp4-hadamard-stochastic-columns": ("nvfp4", 0, True, True),
}
"""Case -> scheme, axis of the sum, stochastic rounding, random Hadamard transform."""


def add_options(parser: ArgumentParser) -> None:
    parser.add_argument("--rows", type=int, default=4, help="of a training batch (default: 4)")
    parser.add_argument("--length", type=int, default=512, help="tokens of a row in training (default: 512)")


def cases(options: Namespace) -> list[Case]:
    sizes = {size: size != "30m" for size in SIZES if size in ("30m", "150m", TOY)}
    return [
        *(Case(f"round-{name}", partial(rounding, name)) for name in ROUNDINGS),
        *(
            Case(f"step-{size}-{recipe}", partial(step, size, recipe), when_named=named)
            for size, named in sizes.items()
            for recipe in RECIPES
        ),
    ]


def rounding(name: str, options: Namespace) -> Line:
    scheme, axis, stochastic, transformed = ROUNDINGS[name]
    x = torch.randn(SIDE, SIDE).bfloat16()
    kernel = table(x.device, x.dtype)["quantize"]

    def once() -> Rounded:
        return rounded(
            x,
            SCHEMES[scheme],
            axis,  # type: ignore[arg-type]
            random=KEY if stochastic else None,
            signs=DEFAULT_SIGNS if transformed else None,
        )

    runs: dict[str, Callable[[], object]] = {OURS: once}
    line: Line = {"kernel": kernel, "side": SIDE, "outcome": float(once().values.float().abs().mean())}
    if not options.alone and kernel != "torch":
        runs["reference"] = in_reference(once)
        line["gate"] = refuse_other_bits(once(), in_reference(once)())
    line |= in_turns({side: plain(run) for side, run in runs.items()}, options.repeats, units=x.numel())
    found = once().values
    least = (x.nbytes + found.nbytes) / copy_rate() / x.numel()
    medians = {side: seconds[1] for side, seconds in line["seconds"].items()}
    return line | {
        "ceiling_seconds": short(least),
        "share_of_ceiling": {side: short(least / seconds) for side, seconds in medians.items()},
        "figures": {f"{side}_ns_per_element": short(1e9 * seconds) for side, seconds in medians.items()},
    }


def refuse_other_bits(ours: Rounded, reference: Rounded) -> dict[str, float]:
    """How many numbers differ: none, or it is a Disagreement."""
    off = int((ours.values != reference.values).sum()) + int((ours.scale != reference.scale).sum())
    if off:
        raise Disagreement(f"{off} of {ours.values.numel()} numbers are not those of the reference; not timed")
    return {"different": 0.0}


def step(size: str, recipe: str, options: Namespace) -> Line:
    config = SIZES[size]
    tokens = batch(size, options.rows, options.length)
    taken = training_step(config, precision(recipe), tokens)
    line: Line = {"parameters": parameters(config), "rows": options.rows, "length": options.length}
    line["kernel"] = table(tokens.device, torch.bfloat16)["quantize"]
    steps = {OURS: taken}
    if not options.alone:
        steps[BF16] = training_step(config, precision(BF16), tokens)
        with torch.no_grad(), kernels("quantize=reference"):
            expected = loss_of(config, recipe, tokens)
        line["gate"] = refuse_other_loss(taken(), expected)
        steps[BF16]()
    line["outcome"] = taken()
    line |= in_turns({name: plain(each) for name, each in steps.items()}, options.repeats, warm=not options.alone)
    flops, ceiling = training_flops(config, options.rows, options.length), arithmetic_rate(BF16)
    medians = {name: seconds[1] for name, seconds in line["seconds"].items()}
    if BF16 in medians:
        line["figures"] = {"times_bf16": short(1 / line["ratio"][BF16][1])}
    return line | {
        "tokens_per_second": {name: short(tokens.numel() / seconds) for name, seconds in medians.items()},
        "share_of_ceiling": {name: short(flops / seconds / ceiling) for name, seconds in medians.items()},
    }


def refuse_other_loss(ours: float, reference: float) -> dict[str, float]:
    """Both losses, or Disagreement."""
    found = {OURS: short(ours), "reference": short(reference)}
    if not abs(ours - reference) <= SAME_LOSS * abs(reference):
        raise Disagreement(f"the loss is not that of the reference rounding: {found}; not timed")
    return found


def training_step(
    config: HybridConfig, recipe: PrecisionConfig, tokens: Tensor, device: str = "cpu"
) -> Callable[[], float]:
    """A step as the training loop takes it, in a precision recipe; gives the loss before it."""
    from seqloom.numerics.place import Clock
    from seqloom.systems.hybrid_lm.loss import main_loss
    from seqloom.train.config import OptimizerConfig
    from seqloom.train.optimizers import build_optimizers

    with torch.device(device):
        model = build(config, BF16).train()
    clock = Clock()
    apply_precision(model, recipe, clock)
    optimizers = build_optimizers(model, OptimizerConfig(lr=1e-4, weight_decay=0.1))
    targets = targets_of(tokens)
    steps = 0

    def taken() -> float:
        nonlocal steps
        clock.begin(steps)
        steps += 1
        hidden, _ = model.hidden(tokens)
        loss = main_loss(model, hidden, targets)[0] / tokens.numel()
        loss.backward()
        optimizers.step(1.0)
        model.zero_grad()
        return float(loss.detach())

    return taken


def loss_of(config: HybridConfig, recipe: str, tokens: Tensor) -> float:
    """Of the same fresh model, without a step."""
    from seqloom.systems.hybrid_lm.loss import main_loss

    model = build(config, BF16).train()
    apply_precision(model, precision(recipe))
    hidden, _ = model.hidden(tokens)
    return float(main_loss(model, hidden, targets_of(tokens))[0] / tokens.numel())


def precision(recipe: str) -> PrecisionConfig:
    return PrecisionConfig(activations=BF16, recipe=recipe)  # type: ignore[arg-type]


def in_reference(run: Callable[[], Rounded]) -> Callable[[], Rounded]:
    """The same by the reference."""

    def slow() -> Rounded:
        with kernels("quantize=reference"):
            return run()

    return slow
