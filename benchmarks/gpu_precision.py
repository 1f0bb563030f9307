"""Formats of few bits on a CUDA device, as cases of the area `gpu`; measured only where named.

    python -m benchmarks gpu --only 'precision-*' --out benchmarks/results/gpu_precision_h200_2026-11-28.jsonl

precision-gate-FORMAT           the units of the device beside emulation: output and both gradients of a linear layer
precision-linear-SIDE-FORMAT    a linear layer forward and backward, casts included, beside BF16; products alone as well
precision-step-WIDTH-RECIPE     a training step of wide layers beside BF16 (goal: 1.3 times as fast on the large ones)
precision-train                 a 100 M model and its branches: loss gaps of the recipes (half an hour, `studies`)

A gate lets the units sum in another order and in fewer bits, as far as Σ|a||b| allows: 2^-9 of it in the forward
pass, where the recipes take fast sums, 2^-11 in the backward pass, and one rounding of the result.
"""

import tempfile
from argparse import Namespace
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.case import Case, Disagreement, Line, NotHere
from benchmarks.gpu_limits import DEVICE, product_rate
from benchmarks.models import parameters, training_flops
from benchmarks.pairing import OURS, Side, in_turns, short
from benchmarks.precision import BF16, training_step
from seqloom.core.errors import ConfigError
from seqloom.nn.linear import Linear
from seqloom.numerics.precision import PrecisionConfig, PrecisionRule, apply_precision
from seqloom.ops.scaled_mm import refuse_emulation
from seqloom.systems.hybrid_lm.config import AttentionConfig, HybridConfig, MambaConfig, MlpConfig

FORMATS = ("fp8", "fp8_blockwise")
FAST, PRECISE, ROUNDED = 2.0**-9, 2.0**-11, 2.0**-8
GATE_SIZES = (357, 520, 264)
"""Tokens, inputs and outputs of the gate, of which no block takes all."""
SIDES = (2048, 4096, 8192)
RECIPES = ("fp8_nemotron_h", "fp8_blockwise")


def wide(width: int) -> HybridConfig:
    """Four blocks whose linear layers are as wide as those of a model of some billions."""
    return HybridConfig(
        pattern="M-*-",
        vocab_size=16384,
        width=width,
        mamba=MambaConfig(heads=width // 32, head_width=64, state_width=128, groups=8),
        attention=AttentionConfig(heads=width // 128, kv_heads=8, head_width=128),
        mlp=MlpConfig(hidden_width=4 * width),
    )


def cases() -> list[Case]:
    found = [
        *((f"gate-{format}", partial(gate, format)) for format in FORMATS),
        *((f"linear-{side}-{format}", partial(linear, side, format)) for side in SIDES for format in FORMATS),
        *((f"step-{width}-{recipe}", partial(step, width, recipe)) for width in SIDES[:2] for recipe in RECIPES),
        ("train", train),
    ]
    return [Case(f"precision-{name}", measure, when_named=True) for name, measure in found]


def gate(format: str, options: Namespace) -> Line:
    """Units against emulation, or NotHere where the device has none."""
    tokens, inputs, outputs = GATE_SIZES
    layer = built(inputs, outputs)
    x, dy = (torch.randn(tokens, width, device=DEVICE).bfloat16() for width in (inputs, outputs))
    found = passes(layer, placed(format, "require"), x, dy)
    expected = passes(layer, placed(format, "emulate"), x, dy)
    w = layer.weight.detach().float().abs()
    x_, dy_ = x.float().abs(), dy.float().abs()
    bounds = {
        "forward": (FAST, x_ @ w.mT),
        "input_gradient": (PRECISE, dy_ @ w),
        "weight_gradient": (PRECISE, dy_.mT @ x_),
    }
    return {"format": format} | refuse_too_far(found, expected, bounds)


def refuse_too_far(
    found: list[Tensor], expected: list[Tensor], bounds: dict[str, tuple[float, Tensor]]
) -> dict[str, dict[str, float]]:
    """The largest difference of each result as a share of what is allowed, or Disagreement."""
    shares = {}
    for (name, (share, sums)), one, other in zip(bounds.items(), found, expected, strict=True):
        allowed = share * sums + ROUNDED * other.float().abs()
        shares[name] = short(float(((one.float() - other.float()).abs() / allowed.clamp(min=1e-30)).max()))
    if not all(value <= 1 for value in shares.values()):
        raise Disagreement(f"units and emulation differ by {shares} of what is allowed")
    return {"gate": shares}


def linear(side: int, format: str, options: Namespace) -> Line:
    layer = built(side, side)
    x, dy = (torch.randn(side, side, device=DEVICE).bfloat16() for _ in range(2))
    recipes = {OURS: placed(format, "require"), BF16: PrecisionConfig(activations="bf16")}
    timed = {name: Side(waiting(partial(passes, layer, recipe, x, dy))) for name, recipe in recipes.items()}
    line = {"format": format, "side": side} | in_turns(timed, options.repeats)
    flops = 6 * side**3
    rates = {name: short(flops / seconds[1] / 1e12) for name, seconds in line["seconds"].items()}
    products = in_turns({name: Side(waiting(run)) for name, run in bare_products(side).items()}, options.repeats)
    return line | {
        "figures": {
            **{f"{name}_tflops": rate for name, rate in rates.items()},
            "product_alone_bf16_over_fp8": products["ratio"][BF16][1],
        },
        "share_of_ceiling": {
            name: short(flops / seconds[1] / product_rate()) for name, seconds in line["seconds"].items()
        },
    }


def bare_products(side: int) -> dict[str, Callable[[], object]]:
    """One product of square matrices, per tensor in FP8, and in BF16."""
    a, b = (torch.randn(side, side, device=DEVICE).bfloat16() for _ in range(2))
    a8, b8, one = a.to(torch.float8_e4m3fn), b.to(torch.float8_e4m3fn), torch.ones((), device=DEVICE)
    return {
        OURS: lambda: torch._scaled_mm(a8, b8.t(), one, one, out_dtype=torch.bfloat16, use_fast_accum=True),
        BF16: lambda: a @ b.t(),
    }


def step(width: int, recipe: str, options: Namespace) -> Line:
    config = wide(width)
    chosen = PrecisionConfig(
        activations="bf16",
        recipe=recipe,  # type: ignore[arg-type]
        keep_first=0,
        keep_last=0,
        hardware="require",
    )
    refuse_without_units(chosen)
    tokens = torch.randint(config.vocab_size, (options.rows, options.length), device=DEVICE)
    sides = {OURS: chosen, BF16: PrecisionConfig(activations="bf16", recipe="bf16")}
    steps = {name: training_step(config, each, tokens, DEVICE) for name, each in sides.items()}
    losses = {name: [taken(), taken()] for name, taken in steps.items()}
    ours, theirs = losses[OURS][0], losses[BF16][0]
    if not abs(ours - theirs) <= 0.02 * theirs:
        raise Disagreement(f"losses before the first step differ: {losses}; not timed")
    line: Line = {"parameters": parameters(config), "rows": options.rows, "length": options.length, "gate": losses}
    line |= in_turns({name: Side(waiting(taken)) for name, taken in steps.items()}, options.repeats, warm=True)
    flops = training_flops(config, options.rows, options.length)
    medians = {name: seconds[1] for name, seconds in line["seconds"].items()}
    return line | {
        "tokens_per_second": {name: short(tokens.numel() / seconds) for name, seconds in medians.items()},
        "share_of_ceiling": {name: short(flops / seconds / product_rate()) for name, seconds in medians.items()},
    }


def train(options: Namespace, scale: str = "gpu", **sizes: Any) -> Line:
    """Loss gaps of the recipes at the scale `gpu`, in one run on the same batches."""
    from seqloom.studies import fp8, mor, nvfp4
    from seqloom.studies.branching import train_branches
    from seqloom.studies.precision_scales import PrecisionOptions, plan
    from seqloom.train.parallel.together import Silence

    recipes = {name: fp8.RECIPES[name] for name in (fp8.TENSOR, fp8.E4M3)}
    recipes |= {nvfp4.FULL: nvfp4.recipes(0.7)[nvfp4.FULL], mor.TENSOR: mor.RECIPES[mor.TENSOR]}
    planned = plan(PrecisionOptions(scale=scale, **sizes), recipes)  # type: ignore[arg-type]
    with tempfile.TemporaryDirectory() as room:
        found = train_branches(planned, Path(room), Silence())
    gaps = {name: found.late_gap(name) for name in found.names}
    slower = {name: found.slowdown(name, 0) for name in planned.branches}
    return {
        "steps": planned.trunk.train.steps,
        "branch_at": planned.branch_at,
        "figures": {f"gap_percent_{name.replace(' ', '_')}": short(100 * gap.mean) for name, gap in gaps.items() if gap}
        | {f"step_over_bf16_{name}": short(ratio) for name, ratio in slower.items() if ratio},
        "ended": found.ended(),
    }


def built(inputs: int, outputs: int) -> Linear:
    torch.manual_seed(0)
    with torch.device(DEVICE):
        layer = Linear(inputs, outputs)
        layer.initialise(inputs**-0.5, 1)
    return layer


def placed(format: str, hardware: str) -> PrecisionConfig:
    """A recipe that gives every layer this format; NotHere where the device lacks the units that are required."""
    rules = (PrecisionRule(modules="*", format=format),)  # type: ignore[arg-type]
    recipe = PrecisionConfig(activations="bf16", rules=rules, hardware=hardware)  # type: ignore[arg-type]
    refuse_without_units(recipe)
    return recipe


def refuse_without_units(recipe: PrecisionConfig) -> None:
    if recipe.hardware != "require":
        return
    try:
        refuse_emulation(torch.device(DEVICE), recipe)
    except ConfigError as error:
        raise NotHere(str(error)) from None


def passes(layer: Linear, recipe: PrecisionConfig, x: Tensor, dy: Tensor) -> list[Tensor]:
    """Output, and the gradients of input and weight."""
    apply_precision(layer, recipe)
    leaf = x.detach().requires_grad_()
    y = layer(leaf)
    return [y.detach(), *torch.autograd.grad(y, (leaf, layer.weight), dy)]


def waiting(run: Callable[[], object]) -> Callable[[object], None]:
    """A run until the device is done."""

    def timed(_: object) -> None:
        run()
        if DEVICE == "cuda":
            torch.cuda.synchronize()

    return timed
