"""Quantizing a trained hybrid model: which layers, calibrated on what, written how, and checked.

    text -> calibrate -> (scores -> formats under a budget) -> quantize -> errors and losses -> folder -> compared

The folder appears only after every matrix, read back through the usual reader, equals what was meant bit for bit.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from seqloom.core.config import to_data
from seqloom.core.devices import pick_device
from seqloom.core.errors import ConfigError
from seqloom.core.progress import Progress
from seqloom.data.config import SourceConfig
from seqloom.data.prepare import Prepared
from seqloom.data.rows import Rows
from seqloom.nn.fold import fold
from seqloom.quantize.calibrate import Calibration, calibrate
from seqloom.quantize.choose import choose, effective_bits, scores
from seqloom.quantize.config import QuantFormat, QuantizeConfig
from seqloom.quantize.report import NAME, Report, layer_reports
from seqloom.quantize.sites import Site, sites
from seqloom.quantize.weights import Weights, fits, quantize_weights, simulated
from seqloom.systems.hybrid_lm.convert import refuse_existing
from seqloom.systems.hybrid_lm.disk_weights import DiskWeights
from seqloom.systems.hybrid_lm.evaluate import BATCH_ROWS, measure, text_for
from seqloom.systems.hybrid_lm.folder import read_model
from seqloom.systems.hybrid_lm.kept_layers import fixed_format, kept_sites, refuse_impossible
from seqloom.systems.hybrid_lm.loss import cross_entropy
from seqloom.systems.hybrid_lm.model import HybridLM
from seqloom.systems.hybrid_lm.quantized_config import BESIDE
from seqloom.systems.hybrid_lm.quantized_writing import QuantizedModel


def quantize(
    folder: Path,
    into: Path,
    config: QuantizeConfig,
    sources: tuple[SourceConfig, ...] = (),
    progress: Progress | None = None,
    *,
    verified: bool = False,
) -> Report:
    """Quantize a model folder into a new one.

    Args:
        sources: text to calibrate on, a held-back part of it to measure on; without any, that of the folder's run.
        verified: the caller has just compared the folder with its manifest.
    Raises:
        ConfigError, CheckpointError, DataError, NumericsError: as `seqloom.quantize`.
    """
    refuse_existing(into)
    tell = progress or (lambda stage, share: None)
    before = DiskWeights(folder, verified=verified)
    if before.public.quantization is not None or (folder / BESIDE).exists():
        raise ConfigError(f"{folder}: is quantized already; quantize the model that it was made from")
    model = read_model(folder, verified=True).eval().to(pick_device("auto"))
    fold_methods(model)
    everything = sites(model)
    kept = kept_sites(model.config, everything, config)
    chosen = [site for site in everything if site.name not in kept]
    refuse_impossible(chosen, config)
    prepared = text_for(folder, model.vocab_size, sources, progress)
    batches = list(_batches(prepared, config.rows, model.lm_head.weight.device))
    run = partial(_run, model, batches)

    tell("calibrating", 0.0)
    calibration = calibrate(model, chosen, run)
    formats, weights = _formats_and_weights(model, chosen, config, calibration, batches, tell)
    tell("measuring", 0.0)
    layers = layer_reports(model, chosen, weights, formats, calibration, run)
    loss, tokens = _losses(model, prepared, config, weights, formats, calibration)
    unchanged = [site.name for site in chosen if formats[site.name] == "bf16"]
    result = QuantizedModel(model, config, formats, weights, calibration, [*kept, *unchanged])
    report = Report(
        settings=to_data(config),
        bits_per_weight=effective_bits(chosen, formats),
        layers=layers,
        kept=[*result.kept],
        loss=loss,
        tokens=tokens,
        bytes_before=before.stored_bytes,
        bytes_after=sum(tensor.nbytes for tensor in result.tensors()),
    )
    result.write(
        into,
        report.as_data(),
        report_name=NAME,
        carried=before.public.carried,
        carry_from=folder,
        progress=progress,
    )
    return report


def fold_methods(model: HybridLM) -> None:
    """Let reparametrised matrices become the plain ones that they stand for."""
    if (folded := model.config.stability.folded()) != model.config.stability:
        fold(model)
        model.config = replace(model.config, stability=folded)


def _batches(prepared: Prepared, count: int, device: torch.device) -> Iterator[Rows]:
    """Rows to calibrate on: training rows, so that those held back stay unseen."""
    for start in range(0, count, BATCH_ROWS):
        rows = prepared.train.rows(range(start, min(start + BATCH_ROWS, count)))
        yield Rows(*(part.to(device) for part in rows))


@torch.no_grad()
def _run(model: HybridLM, batches: Sequence[Rows]) -> None:
    for rows in batches:
        model.hidden(rows.tokens, rows.documents)


def _formats_and_weights(
    model: HybridLM,
    chosen: Sequence[Site],
    config: QuantizeConfig,
    calibration: Calibration,
    batches: Sequence[Rows],
    tell: Progress,
) -> tuple[dict[str, QuantFormat], Weights]:
    if config.budget_bits is None:
        formats = {site.name: fixed_format(site, config) for site in chosen}
        return formats, quantize_weights(chosen, formats, config.weights, partial(tell, "quantizing"))
    candidates: dict[QuantFormat, Weights] = {
        format: quantize_weights(
            chosen,
            {site.name: format for site in chosen if fits(site, format)},
            config.weights,
            partial(tell, f"quantizing to {format}"),
        )
        for format in config.candidates
        if format != "bf16"
    }
    found = scores(model, candidates, calibration, _losses_to_learn_from(model, batches, tell))
    formats = choose(chosen, found, config.candidates, config.budget_bits)
    weights = {name: candidates[format][name] for name, format in formats.items() if format != "bf16"}
    if not weights:
        raise ConfigError(f"budget_bits: with {config.budget_bits:g} bits per weight every layer can stay in BF16")
    return formats, weights


def _losses_to_learn_from(model: HybridLM, batches: Sequence[Rows], tell: Progress) -> Iterator[Tensor]:
    """The loss of each batch in nats, with gradients of activations alone."""
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    table = model.backbone.embeddings.weight.requires_grad_(True)  # where the gradient of every activation ends
    for number, rows in enumerate(batches):
        tell("scoring formats", number / len(batches))
        hidden, _ = model.hidden(rows.tokens, rows.documents)
        yield cross_entropy(model, hidden, rows.targets)
        table.grad = None


def _losses(
    model: HybridLM,
    prepared: Prepared,
    config: QuantizeConfig,
    weights: Weights,
    formats: dict[str, QuantFormat],
    calibration: Calibration,
) -> tuple[dict[str, float], int]:
    """Nats per token on held-back rows, and how many tokens."""
    token_bytes = torch.from_numpy(prepared.tokenizer.token_bytes)
    look = partial(measure, model, prepared.valid, config.rows, BATCH_ROWS, token_bytes)
    before = look()
    loss = {"before": before["loss"]}
    for kind, activations in (("weights", False), ("weights_and_activations", True)):
        kv_cache = activations and config.kv_cache is not None
        with simulated(model, weights, formats, calibration, activations=activations, kv_cache=kv_cache):
            loss[kind] = look()["loss"]
    return loss, int(before["tokens"])
