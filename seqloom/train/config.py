"""Settings of the training loop; free of torch so that the command line stays light."""

from typing import Annotated, Literal

from seqloom.core.config import Ge, Gt, Interval, config

DecayShape = Literal["minus_sqrt", "linear", "cosine"]


@config
class OptimizerConfig:
    """AdamW, SGD with Nesterov's momentum or RMSProp for everything; or Muon for the hidden matrices and AdamW for the
    rest."""

    kind: Literal["adamw", "muon", "sgd", "rmsprop"] = "adamw"
    lr: Annotated[float, Gt(0)] = 1e-3
    """Peak learning rate of all but the Muon group."""
    muon_lr: Annotated[float, Gt(0)] = 0.02
    """Peak learning rate of the Muon group (orthogonalised updates); unused with adamw."""
    beta1: Annotated[float, Interval(ge=0, lt=1)] = 0.9
    beta2: Annotated[float, Interval(ge=0, lt=1)] = 0.95
    """Decay of the mean square of gradients, also with rmsprop."""
    eps: Annotated[float, Gt(0)] = 1e-8
    weight_decay: Annotated[float, Ge(0)] = 0.1
    """Decay of matrices and convolution kernels, decoupled with adamw and muon and part of the gradient with sgd and
    rmsprop; one-dimensional parameters are never decayed."""
    momentum: Annotated[float, Interval(gt=0, lt=1)] = 0.95
    """Nesterov momentum of sgd and of the Muon group."""


@config
class ScheduleConfig:
    """Learning-rate factor over the run: linear warm-up, a plateau (wsd) or none (cosine, exponential), then decay."""

    kind: Literal["wsd", "cosine", "exponential", "constant"] = "wsd"
    warmup_steps: Annotated[int, Ge(0)] = 100
    decay_fraction: Annotated[float, Interval(gt=0, le=1)] = 0.2
    """Share of all steps spent in the final decay of `wsd`."""
    decay_shape: DecayShape = "minus_sqrt"
    final_factor: Annotated[float, Interval(ge=0, le=1)] = 0.01
    """Learning rate at the last step, as a share of the peak."""


@config
class ParallelConfig:
    """How a training is spread over the processes that torchrun started; data · context · tensor is their number.

    It changes memory and speed, never what is learned, and may change whenever the run goes on."""

    data: Annotated[int, Ge(1)] | None = None
    """Ranks that learn from different rows; None takes all that the other settings leave."""
    context: Annotated[int, Ge(1)] = 1
    """Ranks that each hold a stretch of every row: for rows too long for one device."""
    tensor: Annotated[int, Ge(1)] = 1
    """Ranks that share the matrices of every mixer by heads and hidden units; best kept within one machine."""
    expert: Annotated[int, Ge(1)] = 1
    """Ranks, out of data · context, among which the experts of a layer are dealt out."""

    @property
    def single(self) -> bool:
        """Whether one process is enough."""
        return (self.data or 1) == self.context == self.tensor == self.expert == 1


@config
class TrainConfig:
    """How to step: length, optimizer, schedule, and when to look, save and stop."""

    steps: Annotated[int, Ge(1)]
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    clip_norm: Annotated[float, Gt(0)] | None = 1.0
    """Largest global gradient norm; longer gradients are scaled down to it. None switches clipping off."""
    on_not_finite: Literal["stop", "skip", "roll_back"] = "stop"
    """What becomes of a step whose loss or gradient is not finite, before it touches anything: end the run, leave its
    batch out, or go back to the last checkpoint and leave out all batches since then."""
    not_finite_limit: Annotated[int, Ge(1)] = 5
    """Times in a row that batches may be left out at the same step before the run ends after all."""
    activation_checkpointing: bool = False
    """Recompute each layer's inside in the backward pass: less memory, about a third more time."""
    evaluate_every: Annotated[int, Ge(1)] = 250
    """Steps between evaluations; the last step is always evaluated."""
    save_every: Annotated[int, Ge(1)] = 250
    """Steps between checkpoints; the last step is always saved."""
    async_save: bool = False
    """Write checkpoints in the background from a copy: training goes on meanwhile, for the memory of the copy."""
    keep_steps: Annotated[int, Ge(2)] = 2
    """Complete checkpoints kept; at least two, so that a damaged one can be passed over."""
    log_every: Annotated[int, Ge(1)] = 10
    monitor_every: Annotated[int, Ge(1)] | None = 10
    """Steps between looks inside the model: norms, attention, routing by layer. None never looks."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: Annotated[int, Ge(1)] | None = None
    """CPU threads for tensor work; None leaves torch's own choice."""
    parallel: ParallelConfig = ParallelConfig()
    trackers: tuple[str, ...] = ()
    """Further places for metrics by plug-in name, for instance "tensorboard"; metrics.jsonl is always written."""
