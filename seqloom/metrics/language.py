"""How well a language model predicts text, in units that can be compared.

Both measures take sums over the predicted tokens, end-of-document marks among them. Perplexity depends on how a
tokenizer splits text; bits per byte does not, so it alone compares models with different tokenizers.
"""

import math


def bits_per_byte(nats: float, n_bytes: int) -> float:
    """Bits the model needs per byte of text: Σ -ln p / (ln 2 · bytes).

    Args:
        nats: negative log-likelihood summed over all predicted tokens.
        n_bytes: UTF-8 bytes of text that those tokens stand for.
    """
    assert n_bytes > 0
    return nats / math.log(2) / n_bytes


def perplexity(nats: float, tokens: int) -> float:
    """Among how many equally likely tokens the model chooses, on average: exp(Σ -ln p / tokens).

    Args:
        nats: negative log-likelihood summed over all predicted tokens.
        tokens: how many tokens were predicted.
    Returns:
        infinity where the exponential is too large for a float.
    """
    assert tokens > 0
    try:
        return math.exp(nats / tokens)
    except OverflowError:
        return math.inf
