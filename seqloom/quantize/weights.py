"""Weights in few bits, and products with them as the hardware computes them.

A static activation scale is that of the calibrated maximum; larger inputs saturate. With both operands quantized the
product is of code · block scale, exact in BF16, with FP32 accumulation and both global scales afterwards; with weights
alone they are dequantized to the activations' dtype first, as the kernels for hardware without FP4 do.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor, nn

from seqloom.core.errors import ConfigError, NumericsError
from seqloom.numerics.quantized import Quantized, quantize
from seqloom.numerics.scheme import FP8_TENSOR, Scheme
from seqloom.ops.linear import linear
from seqloom.ops.quantize import rounded
from seqloom.quantize.calibrate import Calibration, cached_through
from seqloom.quantize.config import REPRESENTATIONS, QuantFormat, WeightScales
from seqloom.quantize.sites import Product, Site, grouped, through

Weights = dict[str, list[Quantized]]
"""Site -> its matrices."""


def fits(site: Site, format: QuantFormat) -> bool:
    """Whether the blocks of a format divide the inner width of a site."""
    return format == "bf16" or site.matrices.shape[-1] % REPRESENTATIONS[format].multiple == 0


def refuse_misfits(chosen: Sequence[Site], formats: Mapping[str, QuantFormat]) -> None:
    """
    Raises:
        ConfigError: the blocks of a format do not divide a width.
    """
    for site in chosen:
        if not fits(site, format := formats[site.name]):
            raise ConfigError(
                f"{site.name}: its inner width {site.matrices.shape[-1]} is no multiple of the "
                f"{REPRESENTATIONS[format].multiple} that {format} needs; keep it with --keep '{site.name}'"
            )


@torch.no_grad()
def quantize_weights(
    chosen: Sequence[Site], formats: Mapping[str, QuantFormat], scales: WeightScales, progress: Callable[[float], None]
) -> Weights:
    """Quantize all sites that a format is named for; fused ones under their common maximum.

    Args:
        progress: told the share of sites done.
    Raises:
        NumericsError: a weight is not finite.
    """
    common = {
        group[0].group: torch.stack([site.matrices.abs().amax().float() for site in group]).amax()
        for group in grouped(site for site in chosen if site.fused)
    }
    weights: Weights = {}
    for done, site in enumerate(chosen):
        progress(done / len(chosen))
        if (format := formats.get(site.name, "bf16")) == "bf16":
            continue
        if not site.matrices.isfinite().all():
            raise NumericsError(f"{site.name}: a weight is not finite")
        scheme = REPRESENTATIONS[format].weight_scheme(scales)
        weights[site.name] = [quantize(matrix, scheme, 1, amax=common.get(site.group)) for matrix in site.matrices]
    return weights


def product(
    x: Float[Tensor, "*B I"], weight: Quantized, activations: Scheme | None, amax: Tensor | None
) -> Float[Tensor, "*B O"]:
    """x W^T in the dtype of x.

    Args:
        activations: quantize x too, under this scheme and the static maximum `amax`.
    """
    if activations is None:
        return linear(x, weight.dequantize().to(x.dtype))
    a = rounded(x.reshape(-1, x.shape[-1]), activations, 1, amax=amax)
    y = linear(a.values.float(), weight.values().float()) * (a.scale * weight.global_scale)
    return y.to(x.dtype).view(*x.shape[:-1], -1)


@contextmanager
def simulated(
    model: nn.Module,
    weights: Weights,
    formats: Mapping[str, QuantFormat],
    calibration: Calibration,
    *,
    activations: bool,
    kv_cache: bool,
) -> Iterator[None]:
    """Let a model compute with quantized weights, until the end of the block.

    Args:
        activations: quantize activations too, where their format does.
        kv_cache: round keys and values to FP8.
    """

    def compute(name: str, x: Tensor, weight: Tensor, matrix: int) -> Tensor:
        scheme = REPRESENTATIONS[formats[name]].activations if activations else None
        return product(x, weights[name][matrix], scheme, calibration.inputs[name])

    run: Product = compute
    with through(model, weights, run):
        if kv_cache:
            with cached_through(model, _rounding(calibration.keys), _rounding(calibration.values)):
                yield
        else:
            yield


def _rounding(maxima: Mapping[str, Tensor]) -> Callable[[str, Tensor], Tensor]:
    def change(name: str, x: Tensor) -> Tensor:
        result = rounded(x.reshape(-1, x.shape[-1]), FP8_TENSOR, 1, amax=maxima[name])
        return (result.values.float() * result.scale).to(x.dtype).view(x.shape)

    return change
