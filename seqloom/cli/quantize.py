"""`seqloom quantize`: a trained model in fewer bits, in the layouts that vLLM and transformers read."""

from itertools import chain
from pathlib import Path
from typing import Literal

import tyro

from seqloom.cli.arguments import JsonFlag, parse, print_json
from seqloom.cli.runs import read_sources
from seqloom.core.errors import ConfigError
from seqloom.quantize.config import Kept, Layout, QuantizeConfig, Recipe, WeightScales


def main(arguments: list[str]) -> None:
    parse("quantize", quantize, arguments)


def quantize(
    run: tyro.conf.Positional[Path],
    *,
    out: Path | None = None,
    recipe: Recipe = "nvfp4",
    calibrate: tyro.conf.UseAppendAction[tuple[tuple[str, ...], ...]] = (),
    rows: int = 64,
    weights: WeightScales = "max",
    budget_bits: float | None = None,
    layout: Layout = "modelopt",
    kept: Kept | None = None,
    keep: tyro.conf.UseAppendAction[tuple[tuple[str, ...], ...]] = (),
    kv_cache: Literal["fp8"] | None = None,
    as_json: JsonFlag = False,
) -> None:
    """Quantize a trained model: calibrate, choose formats, write a folder that vLLM or transformers reads, and tell
    what it costs: the error of every layer, and the loss before and after.

    Example: seqloom quantize runs/demo --recipe nvfp4 --budget-bits 4.75

    Example: seqloom quantize runs/demo --out demo-fp8 --recipe fp8 --kv-cache fp8

    Args:
        run: a run folder (its newest whole step is taken) or a model folder.
        out: new model folder; by default beside the other, as PATH-RECIPE.
        recipe: one format for all linear layers that are not kept (fp8; nvfp4 with activations in NVFP4 too;
            nvfp4_w4a16 with weights alone), or mixed: experts and MLPs in NVFP4, the others in FP8.
        calibrate: text to calibrate on, a held-back part of it to measure on, instead of that of the run:
            PATH_OR_NAME ...
        rows: rows of text to calibrate on, and at most as many to measure on.
        weights: how scales of NVFP4 weights are found: from the largest magnitude, by least squared error, or the
            better of two scales.
        budget_bits: choose for every layer among the recipe's format, FP8 and BF16, with the least harm to the loss
            at so many bits per weight.
        layout: modelopt for vLLM and TensorRT-LLM, compressed-tensors for transformers.
        kept: which layers stay in BF16 beside head, embeddings, router, convolutions, norms and prediction block:
            nemotron keeps attention and latent projections, nano3 also the Mamba layer before each attention layer,
            conservative all Mamba projections too, linears none. By default nano3; with a budget or mixed, nemotron.
        keep: shell patterns over names of further layers that stay in BF16: PATTERN ...
        kv_cache: write scales for keys and values in this format.
    """
    from rich.console import Console

    from seqloom.cli.display import Display

    if rows < 1:
        raise ConfigError(f"--rows: {rows} is not allowed; it must be a whole number from 1")
    config = QuantizeConfig(
        recipe=recipe,
        weights=weights,
        budget_bits=budget_bits,
        kept=kept,
        keep=tuple(chain.from_iterable(keep)),
        layout=layout,
        kv_cache=kv_cache,
        rows=rows,
    )
    from seqloom.quantize.run import quantize as quantize_folder

    out = out or run.parent / f"{run.resolve().name}-{recipe}"
    with Display(Console(stderr=True)) as display:
        report = quantize_folder(run, out, config, read_sources(calibrate), display.on_prepare)
    if as_json:
        print_json({"folder": str(out), **report.as_data()})
    else:
        print("\n".join([*report.lines(), f"{out}: written in the layout {layout}"]))
