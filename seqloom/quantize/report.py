"""What a quantization costs, layer by layer: the error of its weights, and that of its outputs on calibration text.

    weight error = |W_q - W| / |W|        output error = |y_q - y| / |y|   with y_q of quantized weights and inputs

Both are Frobenius norms over all matrices of a site; the inputs are those of the unquantized model, so the errors of
layers do not add up along the way, and each stands for itself.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from seqloom.ops.linear import linear
from seqloom.quantize.calibrate import Calibration
from seqloom.quantize.config import REPRESENTATIONS, QuantFormat, bits_of
from seqloom.quantize.sites import Site, through
from seqloom.quantize.weights import Weights, product

NAME = "quantization.json"
"""The file of a quantized folder that holds its report."""


@dataclass(frozen=True)
class LayerReport:
    """One site.

    Attributes:
        weights: how many numbers.
        weight_error, output_error: relative; 0 where nothing was quantized, None where the layer computed nothing.
    """

    name: str
    format: QuantFormat
    bits: float
    weights: int
    weight_error: float
    output_error: float | None


@dataclass(frozen=True)
class Report:
    """A quantization, and what it cost.

    Attributes:
        settings: the `QuantizeConfig` as plain data.
        bits_per_weight: over all layers that were not kept.
        kept: module names of the linear layers that stay BF16.
        loss: nats per token on held-back text: "before", with quantized "weights", with "weights_and_activations" (and
            the key-value cache, where asked for).
        tokens: that the losses were measured on.
        bytes_before, bytes_after: of all tensors.
    """

    settings: dict[str, Any]
    bits_per_weight: float
    layers: list[LayerReport]
    kept: list[str]
    loss: dict[str, float]
    tokens: int
    bytes_before: int
    bytes_after: int

    def as_data(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    def change(self, kind: str) -> float:
        """How much higher a loss is than before, in percent."""
        return 100 * (self.loss[kind] / self.loss["before"] - 1)

    def lines(self) -> list[str]:
        """For people: a table of layers, then the totals."""
        width = max(len(layer.name) for layer in self.layers)
        lines = [f"{'layer':{width}}  {'format':11}  {'bits':>4}  weight error  output error"]
        for layer in self.layers:
            output = "-" if layer.output_error is None else f"{layer.output_error:.3%}"
            lines.append(
                f"{layer.name:{width}}  {layer.format:11}  {layer.bits:4g}  {layer.weight_error:12.3%}  {output:>12}"
            )
        lines += [
            f"{len(self.kept)} linear layers stay in BF16; the others take {self.bits_per_weight:.4g} bits per weight",
            f"bytes of all tensors {self.bytes_before:,} -> {self.bytes_after:,}",
            f"loss on {self.tokens:,} held-back tokens {self.loss['before']:.5f} nats per token",
        ]
        for kind in ("weights", "weights_and_activations"):
            told = f"with quantized {kind.replace('_', ' ')}"
            lines.append(f"  {told} {self.loss[kind]:.5f} ({self.change(kind):+.3f} %)")
        return lines


@torch.no_grad()
def layer_reports(
    model: nn.Module,
    chosen: Sequence[Site],
    weights: Weights,
    formats: Mapping[str, QuantFormat],
    calibration: Calibration,
    run: Callable[[], object],
) -> list[LayerReport]:
    """The errors of every site while `run` lets the unquantized model compute."""
    errors: dict[str, list[float]] = {}

    def compared(name: str, x: Tensor, weight: Tensor, matrix: int) -> Tensor:
        y = linear(x, weight)
        scheme = REPRESENTATIONS[formats[name]].activations
        change = product(x, weights[name][matrix], scheme, calibration.inputs[name]).float() - y.float()
        sums = errors.setdefault(name, [0.0, 0.0])
        sums[0] += float(change.square().sum())
        sums[1] += float(y.float().square().sum())
        return y

    with through(model, weights, compared):
        run()
    reports = []
    for site in chosen:
        format = formats[site.name]
        matrices = weights.get(site.name, [])
        pairs = list(zip(matrices, site.matrices, strict=True)) if matrices else []
        squared = sum(float((each.dequantize() - plain.float()).square().sum()) for each, plain in pairs)
        reports.append(
            LayerReport(
                name=site.name,
                format=format,
                bits=bits_of(format),
                weights=site.matrices.numel(),
                weight_error=_ratio(squared, float(site.matrices.float().square().sum())),
                output_error=_ratio(*errors[site.name]) if site.name in errors else 0.0 if not matrices else None,
            )
        )
    return reports


def _ratio(change: float, whole: float) -> float:
    return (change / whole) ** 0.5 if whole else 0.0
