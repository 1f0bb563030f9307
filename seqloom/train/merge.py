"""Checkpoint merging: a weighted average of past checkpoints that stands for a decay that was never run.

    θ = Σ_j w_j θ_j,   j = 1 the oldest of n

An update made between checkpoints j - 1 and j is in all later ones, so it enters with Σ_{i ≥ j} w_i. The weights

    w_j = decay((j - 1)/n) - decay(j/n)

have the tail sums decay((j - 1)/n) and so emulate that decay; for minus_sqrt they are √(j/n) - √((j-1)/n), the oldest
weighs most, and for linear all are 1/n.
Paper: Nemotron 3 Super and Ultra, checkpoint merging; the weights are derived from their description.
"""

import json
import shutil
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from seqloom.core.checkpoint import commit, manifest
from seqloom.core.checkpoint.run_folder import RunFolder, model_files
from seqloom.core.checkpoint.tensors import save_tensors
from seqloom.core.errors import CheckpointError, ConfigError
from seqloom.train.config import DecayShape
from seqloom.train.schedules import decay


def merge_weights(n: int, shape: DecayShape) -> list[float]:
    """The weights of n checkpoints, oldest first; they sum to 1."""
    return [decay((j - 1) / n, shape) - decay(j / n, shape) for j in range(1, n + 1)]


def merge(run: RunFolder, into: str | Path, last: int | None = None, shape: DecayShape = "minus_sqrt") -> list[int]:
    """Average the newest checkpoints of a run into a new model folder, tensor by tensor in FP64.

    Args:
        into: must not exist; gets the newest checkpoint's model files, its weights replaced, and merge.json.
        last: how many checkpoints; None takes all that were kept.
    Returns:
        the merged steps, oldest first.
    Raises:
        ConfigError: the run does not keep that many checkpoints, or fewer than two.
        CheckpointError: a checkpoint is damaged, or `into` exists or cannot be written.
    """
    into, kept = Path(into), run.steps()
    count = len(kept) if last is None else last
    if not 2 <= count <= len(kept):
        raise ConfigError(
            f"{run.path}: {count} checkpoints cannot be merged; at least 2 are needed, and "
            f"{len(kept)} are kept (train.keep_steps decides how many)"
        )
    steps = kept[-count:]
    folders = [run.folder(step) for step in steps]
    for folder in folders:
        if problems := manifest.verify(folder):
            raise CheckpointError(f"{folder}: {', '.join(problems)}")
    if into.exists():
        raise CheckpointError(f"{into}: exists; merge into a new folder")
    weights = merge_weights(count, shape)

    def write(target: Path) -> None:
        for name in model_files(folders[-1]):
            if name.endswith(".safetensors"):
                save_tensors(target / name, _average([folder / name for folder in folders], weights))
            else:
                shutil.copy(folders[-1] / name, target / name)
        facts = {"run": str(run.path), "steps": steps, "weights": weights}
        (target / "merge.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")

    try:
        commit.make_folder(into.parent)
        commit.commit_folder(into, write)
    except OSError as error:
        raise CheckpointError(f"{into}: cannot be written: {error.strerror or error}") from error
    return steps


def _average(paths: list[Path], weights: list[float]) -> dict[str, Tensor]:
    """The weighted mean of files with the same tensors; numbers that are not floating point come from the newest."""
    files = [safe_open(path, framework="pt") for path in paths]
    merged: dict[str, Tensor] = {}
    for name in files[-1].keys():  # noqa: SIM118  # not a mapping
        newest = files[-1].get_tensor(name)
        if newest.is_floating_point():
            total = torch.zeros(newest.shape, dtype=torch.float64)
            for file, weight in zip(files, weights, strict=True):
                total += weight * file.get_tensor(name).double()
            merged[name] = total.to(newest.dtype)
        else:
            merged[name] = newest.clone()
    return merged
