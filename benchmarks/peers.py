"""transformers' own model of the family, opened so that it computes what the published models mean; and the gate.

Release 5.23 floors dt at 1e-3 in training and prefill, which the models do not: the floor is taken away here. It knows
neither the prediction block nor the balance of experts, so models are measured without the one and trained without the
other.
"""

import importlib.util
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.case import Disagreement, NotHere
from benchmarks.pairing import OURS, short

TRANSFORMERS = "transformers"

LOSSES = {"fp32": 1e-3, "bf16": 1e-2}
"""Largest relative difference of losses."""

LOGITS = {"fp32": 1e-4, "bf16": 0.06, "int8": 0.15, "nvfp4": 0.8}
"""Largest median difference of logits as a share of their spread; in BF16 it grows with depth, 0.02 at 14 layers. Below
BF16 both sides round the same weights in other ways; unrelated logits would be about 1 apart."""


def open_transformers(folder: Path, format: str) -> Any:
    """A model folder in transformers, with its weights in a number format.

    Raises:
        NotHere: transformers is not installed, or without this model.
    """
    require(TRANSFORMERS)
    import transformers

    try:
        from transformers import NemotronHForCausalLM
    except ImportError:
        raise NotHere(f"transformers {version('transformers')} has no Nemotron-H") from None
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    dtype = torch.bfloat16 if format == "bf16" else torch.float32
    model = NemotronHForCausalLM.from_pretrained(folder, dtype=dtype)
    for layer in model.model.layers:
        if hasattr(layer.mixer, "time_step_limit"):
            layer.mixer.time_step_limit = (0.0, float("inf"))
    return model


def require(package: str) -> None:
    """Raises NotHere where a package is not installed."""
    if importlib.util.find_spec(package) is None:
        raise NotHere(f"{package} is not installed")


def versions(*packages: str) -> dict[str, str]:
    return {package: version(package) for package in packages}


def agree_on_losses(losses: Mapping[str, Sequence[float]], format: str) -> dict[str, list[float]]:
    """The gate of trainings: everybody's losses step by step, as a record.

    Raises:
        Disagreement: a peer's differ from ours.
    """
    record = {name: [short(loss) for loss in taken] for name, taken in losses.items()}
    for name, taken in losses.items():
        pairs = zip(losses[OURS], taken, strict=True)
        if not all(abs(ours - theirs) <= LOSSES[format] * abs(ours) for ours, theirs in pairs):
            raise Disagreement(f"losses differ from those of {name}: {record}; not timed")
    return record


def agree_on_logits(logits: Mapping[str, Tensor], format: str) -> dict[str, float]:
    """The gate of inference: each peer's median difference from our logits, as a share of their spread.

    Raises:
        Disagreement: it is too large.
    """
    ours = logits[OURS].float()
    gaps = {
        name: short(float((theirs.float() - ours).abs().median() / ours.std()))
        for name, theirs in logits.items()
        if name != OURS
    }
    if not all(gap <= LOGITS[format] for gap in gaps.values()):
        raise Disagreement(f"logits differ by {gaps} of their spread; not timed")
    return gaps
