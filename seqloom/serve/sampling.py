"""From logits to a token, the same token every time.

    scores = logits / temperature
    top-k     keep the k largest (ties with the k-th stay)
    p      = softmax(scores)
    top-p     keep the most likely tokens until they hold the mass top_p; the one that crosses it stays
    min-p     keep tokens with p >= min_p · max p
    token  = argmax p / e,   e ~ Exp(1) independent per token id

The filters run in this order, each on what the one before left, as in transformers. The last line draws exactly from p
(an exponential race, equal to the Gumbel-max trick). The noise e of draw i is a function of (seed, i) alone, so
neighbours in a batch cannot change a draw, and a guess drawn from another distribution with the same noise is the same
token with probability at least (1 - TV) / (1 + TV), TV their total variation distance (Daliri, Musco and Suresh 2024).
"""

import math
import secrets

import torch
from jaxtyping import Float, Int
from torch import Tensor

from seqloom.core.errors import NumericsError
from seqloom.core.seeds import generator
from seqloom.serve.config import Sampling


def probabilities(logits: Float[Tensor, "V"], sampling: Sampling) -> tuple[Float[Tensor, "K"], Int[Tensor, "K"]]:
    """The distribution that the next token is drawn from: temperature, then top-k, top-p and min-p.

    Returns:
        probabilities, and the ids of the K tokens that have them; all other tokens have none.
    """
    scores = logits / max(sampling.temperature, 1e-20)  # less would overflow FP32, and is as good as 0
    ids = torch.arange(len(scores), device=scores.device)
    if 0 < sampling.top_k < len(scores):
        ids = (scores >= scores.topk(sampling.top_k).values[-1]).nonzero()[:, 0]
        scores = scores[ids]
    p = scores.softmax(dim=0)
    if sampling.top_p < 1:
        kept = _most_likely(p, sampling.top_p)
        p, ids = p[kept], ids[kept]
    if sampling.min_p > 0:
        kept = p >= sampling.min_p * p.max()
        p, ids = p[kept], ids[kept]
    return p / p.sum(), ids


def _most_likely(p: Float[Tensor, "K"], mass: float) -> Int[Tensor, "L"]:
    """Places of the most likely entries, as many as it takes to hold the mass."""
    for size in (min(256, len(p)), len(p)):  # a few nearly always hold it, and sorting a whole vocabulary is slow
        ranked, places = p.topk(size)
        upto = ranked.double().cumsum(dim=0)
        if upto[-1] >= mass:
            break
    return places[upto - ranked < mass]


class Sampler:
    """Draws the tokens of one request."""

    def __init__(self, sampling: Sampling) -> None:
        self._sampling = sampling
        self._seed = secrets.randbits(63) if sampling.seed is None else sampling.seed

    def draw(self, logits: Float[Tensor, "V"], index: int) -> int:
        """The token for place `index` of the answer; asked again with the same logits it is the same token.

        Raises:
            NumericsError: the logits hold NaN or infinity.
        """
        largest, token = logits.max(dim=0)
        if not math.isfinite(largest.item()):
            raise NumericsError(f"token {index} of the answer: the model's logits are not finite (largest: {largest})")
        if self._sampling.temperature == 0:
            return int(token.item())
        p, ids = probabilities(logits, self._sampling)
        noise = torch.rand(len(logits), dtype=torch.float64, generator=generator(self._seed, "sampling", index))
        noise = noise.to(ids.device)
        exponential = -(noise if len(ids) == len(noise) else noise[ids]).log()  # above 0: torch.rand stays below 1
        return int(ids[(p / exponential).argmax()].item())
