"""What flows through a model: the largest magnitude of the inputs of every product, and of keys and values.

Static scales of activations are made from these maxima over calibration text ("max" calibration). All experts of a
layer share one, as do q, k and v, since fused kernels have one scale for them.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from seqloom.core.errors import NumericsError
from seqloom.nn.attention import Attention
from seqloom.ops.linear import linear
from seqloom.quantize.sites import Site, grouped, through


@dataclass(frozen=True)
class Calibration:
    """Largest magnitudes, FP32 scalars.

    Attributes:
        inputs: of every site that computed anything.
        keys, values: by the name of the attention module, as they enter the cache.
    """

    inputs: dict[str, Tensor]
    keys: dict[str, Tensor]
    values: dict[str, Tensor]


@torch.no_grad()
def calibrate(model: nn.Module, chosen: Sequence[Site], run: Callable[[], object]) -> Calibration:
    """Watch a model while `run` computes with it.

    Raises:
        NumericsError: an input is not finite; in which module.
    """
    found = Calibration({}, {}, {})

    def product(name: str, x: Tensor, weight: Tensor, matrix: int) -> Tensor:
        _raise_to(found.inputs, name, x)
        return linear(x, weight)

    def see(kind: dict[str, Tensor]) -> Callable[[str, Tensor], Tensor]:
        def look(name: str, x: Tensor) -> Tensor:
            _raise_to(kind, name, x)
            return x

        return look

    names = {site.name for site in chosen}
    with through(model, names, product), cached_through(model, see(found.keys), see(found.values)):
        run()
    for group in grouped(site for site in chosen if site.fused):
        seen = [found.inputs[site.name] for site in group if site.name in found.inputs]
        found.inputs.update({site.name: torch.stack(seen).amax() for site in group if seen})
    return found


@contextmanager
def cached_through(
    model: nn.Module, keys: Callable[[str, Tensor], Tensor], values: Callable[[str, Tensor], Tensor]
) -> Iterator[None]:
    """Let keys and values pass through these on their way into attention, until the end of the block."""
    hooks = []
    for name, module in model.named_modules():
        if isinstance(module, Attention):
            for norm, change in ((module.k_norm, keys), (module.v_norm, values)):
                hooks.append(norm.register_forward_hook(lambda _, x, y, name=name, change=change: change(name, y)))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _raise_to(maxima: dict[str, Tensor], name: str, x: Tensor) -> None:
    seen = x.detach().abs().amax().float()
    if not seen.isfinite():
        raise NumericsError(f"{name}: its input is not finite on the calibration text")
    maxima[name] = torch.maximum(maxima[name], seen) if name in maxima else seen
