"""From logits to a token, the same token every time.

    scores = logits / temperature
    top-k     keep the k largest (ties with the k-th stay)
    p      = softmax(scores)
    top-p     keep the most likely tokens until they hold the mass top_p; the one that crosses it stays
    min-p     keep tokens with p >= min_p · max p
    token  = argmax p / e,   e ~ Exp(1) independent per token id

The filters run in this order, each on what the one before left, as in transformers. The last line draws exactly from p
(an exponential race, equal to the Gumbel-max trick). The noise e is a function of (seed, place, token id) alone, so
neighbours in a batch cannot change a draw, and a guess drawn from another distribution with the same noise is the same
token with probability at least (1 - TV) / (1 + TV), TV their total variation distance (Daliri, Musco and Suresh 2024).
All of it happens on the CPU, where a draw costs less than a launch for every step of it would.
"""

import math

import numpy as np
import torch
from jaxtyping import Float, Float32
from torch import Tensor

from seqloom.core.errors import NumericsError
from seqloom.core.seeds import derive
from seqloom.ops.token_draw import Race, survivors, token_cut, token_draw, token_mass
from seqloom.serve.config import Sampling


def on_cpu(logits: Float[Tensor, "V"]) -> Float32[Tensor, "V"]:
    """Logits where they are drawn from; shares their memory where it can."""
    return logits.detach().to("cpu", torch.float32).contiguous()


def most_likely(logits: Float32[Tensor, "V"], place: str) -> int:
    """The token with the largest logit, the first of several.

    Args:
        place: that it is for, as a message calls it.
    Raises:
        NumericsError: the logits hold NaN or infinity.
    """
    array = logits.numpy()  # whose argmax is many times faster, and that of a NaN if there is one
    token = int(array.argmax())
    if not math.isfinite(array[token]):
        raise NumericsError(f"{place}: the model's logits are not finite (largest: {array[token]})")
    return token


def draw(logits: Float32[Tensor, "V"], likeliest: int, sampling: Sampling, seed: int, place: int) -> int:
    """The token for a place of the answer; asked again with the same logits it is the same token.

    Args:
        likeliest: the token with the largest logit.
    """
    race = race_of(sampling)
    if race.sharpness == 0:
        return likeliest
    return token_draw(logits, logits[likeliest].item(), *race, race_key(seed, place))


def race_of(sampling: Sampling) -> Race:
    """What the settings come to."""
    if sampling.temperature == 0:
        return Race(0.0)
    sharpness = 1 / max(sampling.temperature, 1e-20)  # less would overflow FP32, and is as good as 0
    return Race(sharpness, sampling.top_k, float(sampling.top_p), float(sampling.min_p))


def race_key(seed: int, place: int) -> int:
    """Of the noise for a place of the answer."""
    return derive(seed, "sampling", place)


def logprobs(
    logits: Float32[Tensor, "V"], likeliest: int, token: int, count: int
) -> tuple[float, list[tuple[int, float]]]:
    """Log-probability of a token, and of so many most likely ones with their ids, without temperature and filters; of
    equally likely ones the first ids."""
    largest, array = logits[likeliest].item(), logits.numpy()
    normalizer = largest + math.log(token_mass(logits, largest, 1.0))
    ids = survivors(logits, token_cut(logits, largest, 1.0, count, 1.0)) if count else np.array([], dtype=np.int64)
    ids = ids[np.lexsort((ids, -array[ids]))][:count]
    return float(array[token]) - normalizer, [(int(index), float(array[index]) - normalizer) for index in ids]
