"""Which layers of a hybrid model stay BF16, and which format the others get where nothing is to be chosen.

Presets (Nemotron 3 Nano and Super; the general ones of Model Optimizer) keep

    always         head, prediction block; embeddings, router, convolutions and norms are no linear layers here
    nemotron       also q, k, v and o of attention, and the projections into and out of the latent width
    nano3          also the Mamba layer directly before each attention layer
    conservative   as nemotron, and all Mamba projections
"""

from collections.abc import Sequence
from fnmatch import fnmatchcase

from seqloom.core.errors import ConfigError
from seqloom.quantize.choose import refuse_budget
from seqloom.quantize.config import Kept, QuantFormat, QuantizeConfig
from seqloom.quantize.sites import Site
from seqloom.quantize.weights import refuse_misfits
from seqloom.systems.hybrid_lm.config import HybridConfig

_ALWAYS = ("lm_head", "mtp.*")
_ATTENTION = ("*.q_proj", "*.k_proj", "*.v_proj", "*.o_proj", "*.fc1_latent_proj", "*.fc2_latent_proj")
_MAMBA = ("*.mixer.in_proj", "*.mixer.out_proj")


def kept_sites(model: HybridConfig, everything: Sequence[Site], config: QuantizeConfig) -> list[str]:
    """Names of the sites that stay BF16: by the preset, then by the user's patterns; whole groups at once.

    Raises:
        ConfigError: a pattern of the user matches nothing, or nothing is left to quantize.
    """
    patterns = [*_preset(model, config.kept_preset), *config.keep]
    for pattern in config.keep:
        if not any(fnmatchcase(site.name, pattern) for site in everything):
            names = ", ".join(site.name for site in everything[:3])
            raise ConfigError(f"keep: no linear layer is matched by '{pattern}'; they are named like {names}")
    groups = {site.group for site in everything if any(fnmatchcase(site.name, pattern) for pattern in patterns)}
    if all(site.group in groups for site in everything):
        raise ConfigError(
            f"keep: with these patterns and the preset '{config.kept_preset}' nothing is left to quantize"
        )
    return [site.name for site in everything if site.group in groups]


def _preset(model: HybridConfig, kept: Kept) -> tuple[str, ...]:
    if kept == "linears":
        return _ALWAYS
    if kept == "conservative":
        return (*_ALWAYS, *_ATTENTION, *_MAMBA)
    before = [i - 1 for i, letter in enumerate(model.pattern) if letter == "*" and model.pattern[i - 1 : i] == "M"]
    feeding = [f"backbone.layers.{index}.mixer.*" for index in before] if kept == "nano3" else []
    return (*_ALWAYS, *_ATTENTION, *feeding)


def refuse_impossible(chosen: Sequence[Site], config: QuantizeConfig) -> None:
    """Before anything slow is done.

    Raises:
        ConfigError: the formats or the layout cannot hold these layers, or the budget cannot be met.
    """
    if config.budget_bits is None:
        refuse_misfits(chosen, {site.name: fixed_format(site, config) for site in chosen})
    else:
        refuse_budget(chosen, config.candidates, config.budget_bits)
    if config.layout == "compressed-tensors" and any(".experts." in site.name for site in chosen):
        raise ConfigError(
            "layout: in compressed-tensors experts cannot be quantized, since transformers holds those of a layer in "
            "one tensor and would not find them; keep them with --keep '*.experts.*', or take --layout modelopt"
        )


def fixed_format(site: Site, config: QuantizeConfig) -> QuantFormat:
    """Of a recipe without a choice; "mixed" is that of Nemotron 3 Super."""
    if config.recipe != "mixed":
        return config.recipe
    leaf = site.name.rpartition(".mixer.")[2]
    return "nvfp4" if leaf in ("experts.up_proj", "experts.down_proj", "up_proj", "down_proj") else "fp8"
