"""Settings of the training loop; free of torch so that the command line stays light."""

from typing import Annotated, Literal

from seqloom.core.config import Ge, Gt, Interval, config

DecayShape = Literal["minus_sqrt", "linear", "cosine"]


@config
class OptimizerConfig:
    """AdamW for everything, or Muon for the hidden matrices with AdamW for the rest."""

    kind: Literal["adamw", "muon"] = "adamw"
    lr: Annotated[float, Gt(0)] = 1e-3
    """Peak learning rate of the AdamW groups."""
    muon_lr: Annotated[float, Gt(0)] = 0.02
    """Peak learning rate of the Muon group (orthogonalised updates); unused with adamw."""
    beta1: Annotated[float, Interval(ge=0, lt=1)] = 0.9
    beta2: Annotated[float, Interval(ge=0, lt=1)] = 0.95
    eps: Annotated[float, Gt(0)] = 1e-8
    weight_decay: Annotated[float, Ge(0)] = 0.1
    """Decoupled decay of matrices and convolution kernels; one-dimensional parameters are never decayed."""
    momentum: Annotated[float, Interval(ge=0, lt=1)] = 0.95
    """Nesterov momentum of the Muon group."""


@config
class ScheduleConfig:
    """Learning-rate factor over the run: linear warm-up, a plateau (wsd) or none (cosine), then decay."""

    kind: Literal["wsd", "cosine", "constant"] = "wsd"
    warmup_steps: Annotated[int, Ge(0)] = 100
    decay_fraction: Annotated[float, Interval(gt=0, le=1)] = 0.2
    """Share of all steps spent in the final decay of `wsd`."""
    decay_shape: DecayShape = "minus_sqrt"
    final_factor: Annotated[float, Interval(ge=0, le=1)] = 0.01
    """Learning rate at the last step, as a share of the peak."""


@config
class TrainConfig:
    """How to step: length, optimizer, schedule, and when to look, save and stop."""

    steps: Annotated[int, Ge(1)]
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    clip_norm: Annotated[float, Gt(0)] | None = 1.0
    """Largest global gradient norm; longer gradients are scaled down to it. None switches clipping off."""
    activation_checkpointing: bool = False
    """Recompute each layer's inside in the backward pass: less memory, about a third more time."""
    evaluate_every: Annotated[int, Ge(1)] = 250
    """Steps between evaluations; the last step is always evaluated."""
    save_every: Annotated[int, Ge(1)] = 250
    """Steps between checkpoints; the last step is always saved."""
    keep_steps: Annotated[int, Ge(2)] = 2
    """Complete checkpoints kept; at least two, so that a damaged one can be passed over."""
    log_every: Annotated[int, Ge(1)] = 10
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: Annotated[int, Ge(1)] | None = None
    """CPU threads for tensor work; None leaves torch's own choice."""
    trackers: tuple[str, ...] = ()
    """Further places for metrics by plug-in name, for instance "tensorboard"; metrics.jsonl is always written."""
