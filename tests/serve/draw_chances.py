"""What `seqloom.serve.sampling.draw` has to choose from, without the race."""

import numpy as np
import torch

from seqloom.ops.token_draw import raised, survivors, token_cut
from seqloom.serve.config import Sampling
from seqloom.serve.sampling import on_cpu, race_of


def probabilities(logits: torch.Tensor, sampling: Sampling) -> tuple[np.ndarray, np.ndarray]:
    """Of the tokens that `draw` has to choose from, with their ids: the same cuts, without the race."""
    logits = on_cpu(logits)
    largest, sharpness = logits.max().item(), race_of(sampling).sharpness or 1e20
    cut = token_cut(logits, largest, sharpness, sampling.top_k, float(sampling.top_p))
    ids = survivors(logits, raised(cut, largest, sharpness, float(sampling.min_p)))
    weight = np.exp((logits.numpy()[ids].astype(np.float64) - largest) * sharpness)
    return weight / weight.sum(), ids
