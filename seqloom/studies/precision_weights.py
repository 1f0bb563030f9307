"""What formats of few bits do to a trained model's weights: loss without training on, squared error, both passes.

    static      validation loss with weights (W) and activations (A) of all blocks rounded after training, against FP32
    error       Σ ‖W - Q(W)‖² over that of the plain NVFP4 scales
    mismatch    ‖Q_rows(W) - Q_columns(W)‖ / ‖W‖: by what both passes disagree with scales along each one's own sum;
                with 16 x 16 tiles they see the same weights

All of it is formed at the end of a trunk (`branching.py`), and rounds to the nearest.
Papers: "Pretraining Large Language Models with NVFP4" (arXiv 2509.25149), sections on MXFP4 and two-dimensional
scaling; Nemotron 3 Ultra (four over six).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from seqloom.core.config import to_data
from seqloom.numerics.scheme import SCHEMES
from seqloom.studies.branching import trunk_of
from seqloom.studies.courses import Plan
from seqloom.studies.measured import measured
from seqloom.studies.paired import Difference, difference, shown
from seqloom.studies.precision_looks import Opened, block_linears
from seqloom.studies.study import Claim, Table
from seqloom.train.observer import Observer

STATIC: Mapping[str, tuple[str, str | None]] = {
    "FP8 W8A8": ("fp8_tensor", "fp8_tensor"),
    "NVFP4 W4A4": ("nvfp4", "nvfp4"),
    "NVFP4 W4A16": ("nvfp4", None),
    "NVFP4 mse W4A16": ("nvfp4_mse", None),
    "NVFP4 four over six W4A16": ("nvfp4_four_over_six", None),
    "MXFP4 W4A4": ("mxfp4", "mxfp4"),
    "MXFP4 floor W4A4": ("mxfp4_floor", "mxfp4_floor"),
}
"""Name -> schemes of weights and activations."""

GAUSSIAN, MODEL = "Gaussian", "the model's"


@dataclass(frozen=True)
class AtRest:
    """What was measured, by seed: plain data with the keys "reference", "static", "error" and "mismatch"."""

    by_seed: list[dict[str, Any]]

    def gap(self, name: str) -> Difference | None:
        """Of the static loss, as a share; below zero is worse."""
        found = difference([(one["reference"] - one["static"][name]) / one["reference"] for one in self.by_seed])
        assert found is not None
        return found

    def ratio(self, name: str, other: str) -> float:
        """How many times larger one static gap is than another."""
        first, second = self.gap(name), self.gap(other)
        assert first is not None
        assert second is not None
        return first.mean / second.mean if second.mean else float("inf")

    def error(self, scheme: str) -> float:
        """Squared error of the weights over that of the plain scales."""
        return mean(one["error"][scheme] for one in self.by_seed)

    def mismatch(self, weights: str, scheme: str) -> float:
        return mean(one["mismatch"][weights][scheme] for one in self.by_seed)


def look_at_rest(plan: Plan, folder: Path, watch: Observer) -> AtRest:
    """Measure what is missing at the ends of all trunks."""
    found = []
    for seed in range(plan.seeds):
        trunk = trunk_of(plan, seed, folder)

        def look(trunk: Any = trunk) -> dict[str, Any]:
            trunk.train(watch)
            return weights_at_rest(Opened(trunk.run, trunk.at_end, trunk.run.train.steps))

        settings = {"run": to_data(trunk.run), "static": {name: list(schemes) for name, schemes in STATIC.items()}}
        stored, _ = measured(folder / "weights" / f"{plan.scale}-{seed}.json", settings, look)
        found.append(stored)
    return AtRest(found)


def weights_at_rest(opened: Opened) -> dict[str, Any]:
    import torch

    from seqloom.core.seeds import generator

    def loss(weights: str | None, activations: str | None) -> float:
        chosen = (SCHEMES[name] if name else None for name in (weights, activations))
        return opened.quantized_loss(*chosen)

    weights = [layer.weight.detach() for layer in block_linears(opened.model).values()]
    plain = _squared_error(weights, "nvfp4")
    gaussian = torch.randn(512, 512, generator=generator(0, "gaussian"))
    return {
        "reference": loss(None, None),
        "static": {name: loss(*schemes) for name, schemes in STATIC.items()},
        "error": {name: _squared_error(weights, name) / plain for name in ("nvfp4_four_over_six", "nvfp4_mse")},
        "mismatch": {
            name: {scheme: _mismatch(each, scheme) for scheme in ("nvfp4", "nvfp4_2d")}
            for name, each in ((GAUSSIAN, [gaussian]), (MODEL, weights))
        },
    }


def _squared_error(weights: list[Any], scheme: str) -> float:
    from seqloom.numerics.quantized import quantize

    return sum(float((quantize(w, SCHEMES[scheme]).dequantize() - w).double().square().sum()) for w in weights)


def _mismatch(weights: list[Any], scheme: str) -> float:
    from seqloom.numerics.quantized import quantize

    apart = total = 0.0
    for w in weights:
        rows, columns = (quantize(w, SCHEMES[scheme], axis).dequantize() for axis in (1, 0))
        apart += float((rows - columns).double().square().sum())
        total += float(w.double().square().sum())
    return float((apart / total) ** 0.5)


# Tables and claims -------------------------------------------------------------------------------------------------


def static_table(found: AtRest) -> Table:
    return Table(
        title="Rounded after training: relative gap of the validation loss to FP32",
        headings=("weights and activations", "gap"),
        rows=[(name, shown(found.gap(name))) for name in STATIC],
        note="Linear layers of all blocks, activations with scales of the moment; everything else FP32.",
    )


def mismatch_table(found: AtRest) -> Table:
    return Table(
        title="What both passes see of one weight: relative distance",
        headings=("weights", "1 x 16 blocks", "16 x 16 tiles"),
        rows=[
            (name, f"{found.mismatch(name, 'nvfp4'):.2%}", f"{found.mismatch(name, 'nvfp4_2d'):.2%}")
            for name in (GAUSSIAN, MODEL)
        ],
    )


def microscaling(found: AtRest) -> Claim:
    ratios = {kind: found.ratio(f"MXFP4{kind} W4A4", "NVFP4 W4A4") for kind in ("", " floor")}
    return Claim(
        name="C5 MXFP4",
        says="MXFP4 costs at least 1.3 times as much loss as NVFP4, weights and activations, without training on.",
        paper="2.5 % against 1.5 % after 1 T tokens of training (8 B)",
        here=f"{ratios['']:.2f} times with scales rounded up, {ratios[' floor']:.2f} times rounded down",
        holds=ratios[""] > 1.3,
    )


def both_passes(found: AtRest) -> Claim:
    apart, tiles = found.mismatch(GAUSSIAN, "nvfp4"), found.mismatch(GAUSSIAN, "nvfp4_2d")
    return Claim(
        name="C7 two dimensions",
        says="Tiles of 16 x 16 make the weights of both passes equal; blocks along each sum leave 10 to 16 % between.",
        paper="chain rule kept by two-dimensional scaling; no figure",
        here=f"{tiles:.2%} against {apart:.1%} on Gaussian weights; {found.mismatch(MODEL, 'nvfp4'):.1%} on ours",
        holds=tiles == 0 == found.mismatch(MODEL, "nvfp4_2d") and 0.10 < apart < 0.16,
    )


def after_training(found: AtRest) -> Claim:
    fp8, both, weights = (found.gap(name) for name in ("FP8 W8A8", "NVFP4 W4A4", "NVFP4 W4A16"))
    assert fp8 is not None
    assert both is not None
    assert weights is not None
    return Claim(
        name="C8 after training",
        says="Rounded after training FP8 costs under 0.1 %, NVFP4 under 1 %, NVFP4 weights alone under half of that.",
        paper="FP8 about 99 %, NVFP4 99.8 % median recovery of benchmark scores",
        here=f"{fp8.mean:+.3%}, {both.mean:+.3%}, {weights.mean:+.3%}",
        holds=abs(fp8.mean) < 0.001 and abs(both.mean) < 0.01 and abs(weights.mean) < abs(both.mean) / 2,
    )


def four_over_six(found: AtRest) -> Claim:
    chosen, swept = found.error("nvfp4_four_over_six"), found.error("nvfp4_mse")
    return Claim(
        name="C8 four over six",
        says="Choosing per block between 4 and 6 as the largest value lowers the squared error of weights by 13 to "
        "20 %, a sweep over all scales by more.",
        paper="-16.4 % (Ultra, 49,152 weights)",
        here=f"{chosen - 1:+.1%}, sweep {swept - 1:+.1%}",
        holds=0.80 <= chosen <= 0.87 and swept < 0.80,
    )
