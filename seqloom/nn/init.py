"""Fresh weights: every module knows its own rule, and one walk applies them in module order.

    linears, experts, router, embedding   N(0, σ)
    residual outputs                      N(0, σ / √layers)
    norms 1; Mamba's A, dt, D, taps       their own rules (see mamba2)

Paper: Nemotron-H; Nemotron 3 Super uses σ = 0.014.
"""

from typing import Protocol, runtime_checkable

from torch import nn


@runtime_checkable
class Initialises(Protocol):
    """A module with a rule for its own parameters."""

    def initialise(self, std: float, layers: int) -> None: ...


def initialise(model: nn.Module, std: float, layers: int) -> None:
    """Draw all weights from torch's global generator; a model without memory (on the meta device) is left alone.

    Args:
        std: σ of linear weights.
        layers: residual layers of the backbone, by whose root the residual outputs are scaled down.
    """
    if any(parameter.is_meta for parameter in model.parameters()):
        return  # a draw would do nothing but import torch's compiler, for seconds
    for module in model.modules():
        if isinstance(module, Initialises):
            module.initialise(std, layers)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=std)
