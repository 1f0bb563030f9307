"""AutoQuantize: which layer may go into which format, by what each would do to the loss.

    score(layer, format) = Σ over calibration tokens and outputs of (∂L/∂y · (y_q - y))²

with y_q the layer's output when its weight and input are quantized: a second-order estimate of the harm, with the
squared gradient as curvature. The formats of least total score under a budget of bits per weight are found exactly.
Paper: Nemotron 3 Super, AutoQuantize over {NVFP4, FP8, BF16}.
"""

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from seqloom.core.errors import ConfigError, NumericsError
from seqloom.ops.linear import linear
from seqloom.quantize.budget import Option, cheapest
from seqloom.quantize.calibrate import Calibration
from seqloom.quantize.config import REPRESENTATIONS, QuantFormat, bits_of
from seqloom.quantize.sites import Site, grouped, through
from seqloom.quantize.weights import Weights, fits, product

_MOST = 1e10
"""One batch adds at most this to a score."""

Scores = dict[str, dict[QuantFormat, float]]
"""Site -> format -> score."""


def scores(
    model: nn.Module,
    candidates: Mapping[QuantFormat, Weights],
    calibration: Calibration,
    losses: Iterable[Tensor],
) -> Scores:
    """Score every candidate format of every site.

    Args:
        candidates: the weights of every site in every format that it may have.
        losses: one a batch, each computed when asked for, with a gradient that flows through every site.
    Raises:
        NumericsError: a score is not finite.
    """
    names = {name for weights in candidates.values() for name in weights}
    found: Scores = {name: {format: 0.0 for format, all_ in candidates.items() if name in all_} for name in names}

    def watched(name: str, x: Tensor, weight: Tensor, matrix: int) -> Tensor:
        y = linear(x, weight)
        inputs, plain = x.detach(), y.detach()

        @torch.no_grad()
        def add(gradient: Tensor) -> None:
            for format, weights in candidates.items():
                if name in weights:
                    scheme = REPRESENTATIONS[format].activations
                    change = product(inputs, weights[name][matrix], scheme, calibration.inputs[name]).float()
                    harm = (gradient.float() * (change - plain.float())).square().sum()
                    found[name][format] += float(harm.clamp(max=_MOST))

        y.register_hook(add)
        return y

    with through(model, names, watched):
        for loss in losses:
            loss.backward()
    for name, by_format in found.items():
        for format, score in by_format.items():
            if score != score:
                raise NumericsError(f"{name}: its outputs or gradients are not finite in {format}")
    return found


def refuse_budget(chosen: Sequence[Site], candidates: Sequence[QuantFormat], budget_bits: float) -> None:
    """
    Raises:
        ConfigError: no choice of formats takes so few bits per weight, or every choice takes fewer.
    """
    choices = _choices(chosen, candidates)
    least, most = (
        effective_bits(chosen, {site.name: pick(formats, key=bits_of) for group, formats in choices for site in group})
        for pick in (min, max)
    )
    if not least <= budget_bits <= most:
        raise ConfigError(
            f"budget_bits: {budget_bits:g} bits per weight cannot be had; the layers that are not kept allow "
            f"{least:.4g} to {most:.4g}"
        )


def choose(
    chosen: Sequence[Site], found: Scores, candidates: Sequence[QuantFormat], budget_bits: float
) -> dict[str, QuantFormat]:
    """The format of every site with the least total score, at most `budget_bits` per weight on average.

    Raises:
        ConfigError: as `refuse_budget`.
    """
    refuse_budget(chosen, candidates, budget_bits)
    choices = _choices(chosen, candidates)
    # In half bits, which are whole for every format.
    variables = [
        [
            Option(
                round(2 * bits_of(format)) * sum(site.matrices.numel() for site in group),
                sum(0.0 if format == "bf16" else found[site.name][format] for site in group),
            )
            for format in formats
        ]
        for group, formats in choices
    ]
    picks = cheapest(variables, int(2 * budget_bits * sum(site.matrices.numel() for site in chosen) + 1e-6))
    return {site.name: formats[pick] for (group, formats), pick in zip(choices, picks, strict=True) for site in group}


def _choices(chosen: Sequence[Site], candidates: Sequence[QuantFormat]) -> list[tuple[list[Site], list[QuantFormat]]]:
    """Sites that share a format, and the formats that fit all of them."""
    return [
        (group, [format for format in candidates if all(fits(site, format) for site in group)])
        for group in grouped(chosen)
    ]


def effective_bits(chosen: Sequence[Site], formats: Mapping[str, QuantFormat]) -> float:
    """Bits per weight over all sites, block scales included."""
    total = sum(bits_of(formats[site.name]) * site.matrices.numel() for site in chosen)
    return total / sum(site.matrices.numel() for site in chosen)
