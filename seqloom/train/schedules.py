"""Learning-rate schedules, as one pure function of the step.

    factor(step) = min(warm-up, shape),   warm-up = (step + 1) / warmup_steps

    wsd       1 until the last `decay_fraction` of all steps, then  f + (1 - f) · decay(r)
    cosine    f + (1 - f) · decay(r) over everything after the warm-up, with the cosine decay
    exponential    f^((step + 1) / steps), which falls by the same factor every epoch
    constant  1

    decay(r) = 1 - √r (minus_sqrt),  1 - r (linear),  (1 + cos πr) / 2 (cosine);   r in (0, 1], 1 at the last step

Paper: Nemotron 3 Super and Ultra (warm-up, stable, minus-sqrt decay); Hägele et al. 2024 for the 1 - √r shape.
"""

import math

from seqloom.train.config import DecayShape, ScheduleConfig


def factor(step: int, steps: int, config: ScheduleConfig) -> float:
    """The share of the peak learning rate that a step uses.

    Args:
        step: the step about to be taken, counted from 0.
        steps: length of the whole run.
    """
    warmup = min(1.0, (step + 1) / config.warmup_steps) if config.warmup_steps else 1.0
    if config.kind == "constant":
        return warmup
    if config.kind == "exponential":
        return min(warmup, config.final_factor ** ((step + 1) / steps))
    start, shape = steps - round(steps * config.decay_fraction), config.decay_shape
    if config.kind == "cosine":
        start, shape = config.warmup_steps, "cosine"
    elapsed = max(0, step + 1 - start) / max(1, steps - start)
    return min(warmup, config.final_factor + (1 - config.final_factor) * decay(elapsed, shape))


def decay(elapsed: float, shape: DecayShape) -> float:
    """What is left of the learning rate after a share of the decay: 1 at 0, 0 at 1."""
    if shape == "minus_sqrt":
        return 1 - math.sqrt(elapsed)
    if shape == "linear":
        return 1 - elapsed
    return (1 + math.cos(math.pi * elapsed)) / 2
