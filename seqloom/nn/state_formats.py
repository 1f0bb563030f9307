"""Which number formats a layer's memory is kept in; free of torch, so that command lines can name them.

Keys and values in FP8 halve what attention remembers of every token, and a narrow SSM state halves or quarters what a
Mamba layer remembers of all of them. A recurrent state is rounded again after every token: rounding to nearest then
swallows whatever adds less than half a step, while stochastic rounding ("_sr") keeps the mean.
Papers: Nemotron 3 Super and Ultra, quantization sections.
"""

from typing import Annotated, Literal, get_args

from seqloom.core.config import Ge, config
from seqloom.core.errors import ConfigError

KVFormat = Literal["model", "fp8"]
SsmFormat = Literal["fp32", "bf16", "fp16", "fp16_sr", "int8", "int8_sr", "fp8", "fp8_sr"]


@config
class StateFormats:
    """How keys, values and SSM states are stored; convolution windows stay in the format of the activations."""

    keys_values: KVFormat = "model"
    """model: as the activations; fp8: E4M3, with one scale for the keys of a layer and one for its values."""
    ssm: SsmFormat = "fp32"
    """int8 and fp8 have one scale for a block of up to 128 elements; _sr is stochastic rounding."""
    seed: Annotated[int, Ge(0)] = 0
    """Of stochastic rounding."""

    def __post_init__(self) -> None:
        # Models are told their formats in Python too, where no file reader has checked them.
        for name, kind in (("keys_values", KVFormat), ("ssm", SsmFormat)):
            if (value := getattr(self, name)) not in get_args(kind):
                raise ConfigError(f"state_formats.{name}: {value!r} is not allowed; known: {', '.join(get_args(kind))}")


AS_COMPUTED = StateFormats()
"""Nothing is narrowed."""
