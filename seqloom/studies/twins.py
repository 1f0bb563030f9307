"""Models of other layers and the same size: what an architecture is worth shows only beside its equal.

A twin has another pattern, and MLP layers of such a width that both have the same number of parameters, as nearly as
whole units of that width allow.
"""

from dataclasses import replace

from seqloom.core.errors import ConfigError
from seqloom.systems.hybrid_lm.budget import budget
from seqloom.systems.hybrid_lm.config import HybridConfig, MlpConfig

UNIT = 8
"""Twins' MLP widths are multiples of it."""


def twin(config: HybridConfig, pattern: str) -> HybridConfig:
    """A model of this pattern with as many parameters as another.

    Raises:
        ConfigError: the pattern has no MLP layers to even out the size with, or they would have to vanish.
    """
    layers = pattern.count("-")
    if not layers:
        raise ConfigError(f"a twin of {config.pattern} needs MLP layers to be made as large; '{pattern}' has none")
    bare = replace(config, pattern=pattern, mlp=MlpConfig(hidden_width=UNIT))
    missing = budget(config).parameters - budget(bare).parameters
    hidden = UNIT + UNIT * round(missing / (2 * config.width * layers * UNIT))
    if hidden < UNIT:
        raise ConfigError(f"'{pattern}' is larger than {config.pattern} even with MLP layers of width {UNIT}")
    return replace(bare, mlp=MlpConfig(hidden_width=hidden))


def attention_twin(config: HybridConfig) -> HybridConfig:
    """Attention and MLP in turn, with about as many layers."""
    return twin(config, "*-" * (len(config.pattern) // 2))


def mamba_twin(config: HybridConfig) -> HybridConfig:
    """The same with a Mamba layer in place of every attention layer."""
    return twin(config, config.pattern.replace("*", "M"))
