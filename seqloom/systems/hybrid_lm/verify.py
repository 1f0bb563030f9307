"""A converted folder compared with its source: every bit of every tensor, and the logits by another program's reading.

transformers is asked only where it is installed and two copies of the model in FP32 fit in memory. One fault of it is
worked around, since it would drown what is looked for: it floors dt at time_step_min in prefill, which the published
models do not; its limit is opened before it computes.
"""

import importlib.util
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from seqloom.core.devices import available_bytes
from seqloom.core.errors import CheckpointError
from seqloom.core.progress import Progress
from seqloom.numerics.precision import PrecisionConfig, apply_precision
from seqloom.systems.hybrid_lm.budget import budget
from seqloom.systems.hybrid_lm.disk_weights import DiskWeights, disk_weights
from seqloom.systems.hybrid_lm.folder import read_model

_TOLERANCE = 1e-3
"""Of the largest logit. FP32 rounding is a hundredth of it; a wrong or missing tensor many times as much."""


@dataclass(frozen=True)
class Verified:
    """How a folder compares with its source.

    Attributes:
        tensors: how many are equal, bit for bit, after the cast that was asked for.
        logits_difference: the largest between ours and those of transformers; None if not compared.
        logits_scale: the largest logit.
        remark: how logits were compared, or why not.
    """

    tensors: int
    logits_difference: float | None
    logits_scale: float | None
    remark: str


def verify(source: Path, folder: Path, progress: Progress | None = None) -> Verified:
    """Compare a converted folder with what it was made from.

    Raises:
        CheckpointError: a tensor or the logits differ, or the folder is damaged.
    """
    written = disk_weights(folder)
    _compare_tensors(disk_weights(source, verified=True), written, progress)
    count = len(written.entries)
    if importlib.util.find_spec("transformers") is None:
        return Verified(count, None, None, "only tensors were compared: transformers is not installed")
    cost = budget(written.public.config)
    needed = 4 * (2 * cost.parameters + cost.mtp_parameters) + written.nbytes
    if needed > (free := available_bytes(torch.device("cpu"))):
        return Verified(
            count,
            None,
            None,
            f"only tensors were compared: two models in FP32 take {needed:,} bytes, {free:,} are free",
        )
    difference, scale = _compare_logits(folder)
    remark = "logits of transformers and ours, both in FP32; its floor of dt, which the models do not have, was lifted"
    return Verified(count, difference, scale, remark)


def _compare_tensors(source: DiskWeights, written: DiskWeights, progress: Progress | None) -> None:
    assert source.entries.keys() == written.entries.keys(), "both were checked against one configuration"
    for index, name in enumerate(written.entries, start=1):
        dtype = written.dtype(name)
        for rows in source.pieces(name):
            wanted, found = source.read(name, rows).to(dtype), written.read(name, rows)
            if not torch.equal(_bits(wanted), _bits(found)):
                raise CheckpointError(f"{written.folder}: tensor '{name}' differs from {source.folder}")
        if progress is not None:
            progress("comparing tensors", index / len(written.entries))


def _bits(tensor: Tensor) -> Tensor:
    """Whole numbers with the same bits; as floats, NaN would differ from itself and 0 equal -0."""
    return tensor.view({2: torch.int16, 4: torch.int32}[tensor.dtype.itemsize])


@torch.no_grad()
def _compare_logits(folder: Path) -> tuple[float, float]:
    """The largest difference of logits on random tokens, and the largest logit."""
    import transformers

    ours = read_model(folder, verified=True).float().eval()
    apply_precision(ours, PrecisionConfig(activations="fp32"))
    tokens = torch.randint(ours.vocab_size, (2, 40), generator=torch.Generator().manual_seed(0))
    logits = ours(tokens)
    del ours
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    theirs = transformers.NemotronHForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    for layer in theirs.model.layers:
        if hasattr(layer.mixer, "dt_bias"):
            layer.mixer.time_step_limit = (0.0, float("inf"))
    apart = (theirs.eval()(tokens, use_cache=False).logits - logits).abs().amax(-1)
    scale = float(logits.abs().max())
    # In the middle, since two experts of equal score may change places at a few tokens by rounding alone.
    if not float(apart.median()) <= _TOLERANCE * max(1.0, scale):
        raise CheckpointError(
            f"{folder}: transformers computes other logits from it: at half of the tokens they differ by "
            f"{float(apart.median()):.2g} or more, at a scale of {scale:.2g}"
        )
    return float(apart.max()), scale
