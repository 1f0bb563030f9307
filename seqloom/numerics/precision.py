"""Which module computes in which number format: a recipe, and an ordered table of (module-name pattern, format).

The first matching rule wins, those of the user before those of the recipe; modules that no rule names compute in the
run's activation format. A rule that matches nothing is an error, since a misspelt one would silently train something
else. Parameters stay FP32 masters under their usual names in every recipe; a format only says what a linear layer
multiplies in, so checkpoints move freely between recipes.
"""

import dataclasses
import math
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Annotated, Any, Literal

from seqloom.core.config import Ge, Interval, config
from seqloom.core.errors import ConfigError
from seqloom.numerics.options import USED_BY, Fp8Options, MorOptions, Nvfp4Options, changed
from seqloom.numerics.recipes import PRESETS, PRODUCTS, PlainFormat, Preset, Products, Recipe, products
from seqloom.numerics.recipes import Format as Format

if TYPE_CHECKING:
    import torch
    from torch import nn

    from seqloom.numerics.place import Clock

TILE = 16
"""Sizes that are no multiple of this are padded with zeros, exactly, where they are multiplied."""


@config
class PrecisionRule:
    modules: str
    """Shell pattern over dotted module names, for instance "backbone.layers.*.mixer.q_proj"."""
    format: Format


@config
class PrecisionConfig:
    """The precision recipe of a run."""

    recipe: Recipe = "plain"
    """Number formats of the linear layers of the blocks: those of a published training, or "bf16"; "plain" is whatever
    `activations` says, everywhere."""
    activations: Literal["auto", "fp32", "bf16"] = "auto"
    """Format of the residual stream and of every module without a rule; "auto" takes bf16 with formats of few bits, and
    without them where the hardware multiplies it natively, else fp32; the choice is stored with the run."""
    rules: tuple[PrecisionRule, ...] = ()
    """Asked before the recipe's own; the first that matches wins."""
    keep_first: Annotated[int, Ge(0)] | None = None
    """Blocks at the start that stay in the activation format; None as the recipe has it."""
    keep_last: Annotated[int, Ge(0)] | None = None
    """The same at the end."""
    switch_at: Annotated[float, Interval(gt=0, lt=1)] | None = None
    """Share of the steps after which linear layers compute in BF16; None never."""
    switch: Literal["both", "forward"] = "both"
    """Which passes that late switch changes."""
    hardware: Literal["auto", "require", "emulate"] = "auto"
    """Multiply in the units that a GPU has for a format where they pass a test, or refuse to train without them, or
    always emulate; emulation differs in the order of sums alone."""
    fp8: Fp8Options = Fp8Options()
    nvfp4: Nvfp4Options = Nvfp4Options()
    mor: MorOptions = MorOptions()

    def __post_init__(self) -> None:
        formats = self.formats()
        for path, value in changed(self):
            users = USED_BY.get(path)
            if users is not None and not formats.intersection(users):
                raise ConfigError(
                    f"precision.{path} = {value!r} has no effect in recipe '{self.recipe}'; it is used by the formats "
                    f"{', '.join(users)}"
                )
        if self.nvfp4.sr_bits != 8 and not self.nvfp4.stochastic_gradients:
            raise ConfigError("precision.nvfp4.sr_bits has no effect without stochastic_gradients")
        if self.mor.three_way and self.mor.threshold is not None:
            raise ConfigError("precision.mor.threshold has no effect with three_way, which compares E4M3 with E5M2")
        if self.switch == "forward" and self.switch_at is None:
            raise ConfigError("precision.switch has no effect without switch_at")
        if PRESETS.get(self.recipe) is None and (self.keep_first is not None or self.keep_last is not None):
            raise ConfigError(f"precision.keep_first and keep_last have no effect in recipe '{self.recipe}'")
        if self.activations == "fp32" and (formats or self.recipe == "bf16"):
            raise ConfigError(
                f"precision.activations: 'fp32' contradicts the recipe '{self.recipe}', whose products are summed to "
                "BF16, as is what attention remembers; use 'auto' or 'bf16'"
            )

    def formats(self) -> set[str]:
        """Formats of few bits that modules may get."""
        preset = PRESETS.get(self.recipe)
        own = {preset.format, *(format for _, format in preset.rules)} if preset else set()
        return {format for format in {*own, *(rule.format for rule in self.rules)} if format in PRODUCTS}

    def largest_block(self) -> int:
        """The longest side of a block with a scale of its own, over all formats that may be used; 1 without blocks."""
        sides = [1]
        for format in self.formats():
            found = products(format, self.fp8, self.nvfp4, self.mor)  # type: ignore[arg-type]
            for operand in (*found.forward, *found.input_gradient, *found.weight_gradient):
                schemes = operand.choice.ladder if operand.choice else (operand.scheme,)
                sides += [side or 1 for scheme in schemes if scheme for side in (scheme.along, scheme.across)]
        return max(sides)

    def switch_step(self, steps: int) -> int | None:
        """The first step, counted from 0, after the late switch; None without one."""
        return None if self.switch_at is None else math.ceil(self.switch_at * steps)

    def products(self, format: Format) -> Products | None:
        """What linear layers of a format multiply in; None for the plain formats."""
        return products(format, self.fp8, self.nvfp4, self.mor) if format in PRODUCTS else None


def dtype_of(format: Format) -> "torch.dtype":
    """What a module of this format takes and gives: formats of few bits are made from BF16 and summed to BF16."""
    import torch

    return torch.float32 if format == "fp32" else torch.bfloat16


def native_format(device: "torch.device") -> PlainFormat:
    """The fastest safe training format of a device: bf16 with hardware support, else fp32."""
    import torch

    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    if device.type == "cpu":
        return "bf16" if torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported() else "fp32"
    return "fp32"


def resolve_precision(recipe: PrecisionConfig, device: "torch.device") -> PrecisionConfig:
    """The recipe with its activation format decided for a device."""
    if recipe.activations != "auto":
        return recipe
    chosen = native_format(device) if recipe.recipe == "plain" and not recipe.formats() else "bf16"
    return dataclasses.replace(recipe, activations=chosen)


def apply_precision(model: "nn.Module", recipe: PrecisionConfig, clock: "Clock | None" = None) -> dict[str, Format]:
    """Set the format of every linear layer (any module with a `format` attribute) and of the residual stream.

    A module with `low_bit` true can multiply its `hidden_matrices` in the formats of few bits; to others rules for
    those formats do not apply.

    Args:
        clock: told by the training how far it is, for stochastic rounding and the late switch.
    Returns:
        the decision table, module name -> format, in module order.
    Raises:
        ConfigError: a rule matches no module, "auto" was not resolved before, or a recipe finds nothing to quantize.
    """
    from seqloom.numerics.place import Clock, Place

    if recipe.activations == "auto":
        raise ConfigError("precision.activations: 'auto' must be resolved for a device before it is applied")
    clock, preset = clock or Clock(), PRESETS.get(recipe.recipe)
    blocks = _blocks(model) if preset else []
    unused = {rule.modules for rule in recipe.rules}
    table: dict[str, Format] = {}
    for name, module in model.named_modules():
        if not hasattr(module, "format"):
            continue
        matrices = module.hidden_matrices if getattr(module, "low_bit", False) else ()
        chosen: Format = recipe.activations
        if preset is not None and matrices:
            chosen = _by_preset(name, blocks, preset, recipe) or chosen
        for rule in recipe.rules:
            if fnmatchcase(name, rule.modules) and (matrices or rule.format not in PRODUCTS):
                chosen = rule.format
                unused.discard(rule.modules)
                break
        module.format = chosen
        if matrices or getattr(module, "places", None):
            few = recipe.products(chosen)
            module.products = few
            module.places = {leaf: Place(f"{name}.{leaf}", clock, recipe.hardware) for leaf in matrices if few}
        table[name or "(model)"] = chosen
    if unused:
        raise ConfigError(
            f"precision.rules: no module is matched by {sorted(unused)} (or an earlier rule takes all of its modules, "
            f"or they cannot multiply in so few bits); modules are named like {', '.join(list(table)[:4])}"
        )
    if preset is not None and not any(format in PRODUCTS for format in table.values()):
        first, last = _kept(preset, recipe, len(blocks))
        raise ConfigError(
            f"precision.recipe = '{recipe.recipe}' would quantize nothing: of {len(blocks)} blocks it keeps the first "
            f"{first} and the last {last} (precision.keep_first, keep_last), and others hold no layer that can "
            "multiply in so few bits"
        )
    return table


def describe_precision(model: "nn.Module") -> str:
    """Of a model with formats of few bits, in a line: how many linear layers have which, what share of their weights
    stays as it is, and how many sizes are padded; empty without such formats."""
    counts, numbers, padded = dict[str, int](), dict[str, int](), 0
    linears: list[Any] = [module for module in model.modules() if getattr(module, "low_bit", False)]
    for module in linears:
        shapes = [getattr(module, leaf).shape for leaf in module.hidden_matrices]
        counts[module.format] = counts.get(module.format, 0) + len(shapes)
        numbers[module.format] = numbers.get(module.format, 0) + sum(map(math.prod, shapes))
        padded += sum(any(size % TILE for size in shape[-2:]) for shape in shapes if module.format in PRODUCTS)
    if not any(format in PRODUCTS for format in counts):
        return ""
    kept = sum(number for format, number in numbers.items() if format not in PRODUCTS) / max(1, sum(numbers.values()))
    shown = ", ".join(f"{count} in {format}" for format, count in counts.items())
    return f"matrices of linear layers: {shown}; {kept:.1%} of their weights are not quantized" + (
        f"; {padded} with sizes padded to multiples of {TILE}" if padded else ""
    )


def _by_preset(name: str, blocks: list[str], preset: Preset, recipe: PrecisionConfig) -> Format | None:
    """What a recipe says of a linear layer; None leaves it in the activation format."""
    place = next((index for index, block in enumerate(blocks) if f"{name}.".startswith(f"{block}.")), None)
    if place is None:
        return None
    first, last = _kept(preset, recipe, len(blocks))
    if place < first or place >= len(blocks) - last:
        return None
    return next((format for pattern, format in preset.rules if fnmatchcase(name, pattern)), preset.format)


def _kept(preset: Preset, recipe: PrecisionConfig, blocks: int) -> tuple[int, int]:
    """How many blocks stay as they are at each end."""
    first, last = preset.kept(blocks)
    first = first if recipe.keep_first is None else recipe.keep_first
    return first, last if recipe.keep_last is None else recipe.keep_last


def _blocks(model: "nn.Module") -> list[str]:
    """Names of the blocks of a model: the entries of its list of modules that holds the most parameters."""
    from torch import nn

    lists = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.ModuleList)]
    if not lists:
        return []
    name, chosen = max(lists, key=lambda pair: sum(parameter.numel() for parameter in pair[1].parameters()))
    return [f"{name}.{index}" for index in range(len(chosen))]
