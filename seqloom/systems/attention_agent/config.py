"""Shapes of an agent, what it learns from, and the run that joins them.

Defaults are the paper's sizes for Atari frames (attention-augmented agent, section 2), 2.19 M parameters.
"""

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from seqloom.core.config import Ge, Gt, Interval, MinLen, config
from seqloom.core.errors import ConfigError
from seqloom.core.progress import Progress
from seqloom.rl.config import EnvironmentConfig
from seqloom.train.run import Run as BaseRun

if TYPE_CHECKING:
    import torch

    from seqloom.systems.attention_agent.model import AttentionAgent
    from seqloom.systems.attention_agent.task import AgentTask

MODEL_TYPES = ("seqloom_attention_agent",)


@config
class ConvConfig:
    """A convolution with padding SAME, before a ReLU."""

    channels: Annotated[int, Ge(1)]
    kernel: Annotated[int, Ge(1)]
    stride: Annotated[int, Ge(1)]


@config
class AgentConfig:
    """An agent for one size of frames and one set of actions."""

    rows: Annotated[int, Ge(1)] = 210
    """Of a frame, in pixels."""
    columns: Annotated[int, Ge(1)] = 160
    actions: Annotated[int, Ge(2)] = 18
    convolutions: Annotated[tuple[ConvConfig, ...], MinLen(1)] = (
        ConvConfig(channels=32, kernel=8, stride=4),
        ConvConfig(channels=64, kernel=4, stride=2),
    )
    core: Literal["attention", "lstm", "feed_forward"] = "attention"
    """What stands between the image and the policy: the attention bottleneck with ConvLSTM and LSTM, or, as in the
    paper's baselines, flattened features with an LSTM or without memory."""
    vision_channels: Annotated[int, Ge(2)] = 128
    """Of the ConvLSTM; keys and values together. This and what follows is about the core "attention" alone."""
    key_channels: Annotated[int, Ge(1)] = 8
    """How many of them are keys; the rest are values."""
    basis: Literal["cos_sin", "cos", "none"] = "cos_sin"
    """The fixed code of a position that is appended to keys and values."""
    frequencies: Annotated[int, Ge(1)] = 4
    queries: Annotated[int, Ge(1)] = 4
    query_kind: Literal["top_down", "fixed"] = "top_down"
    """From the LSTM's last output, or learned once and the same at every step."""
    query_width: Annotated[int, Ge(1)] = 128
    """Hidden units between the LSTM's output and the queries."""
    weighting: Literal["softmax", "sum"] = "softmax"
    """How logits become weights of positions: a softmax, or themselves over the number of positions."""
    scale_logits: bool = False
    """Divide logits by the root of the key width."""
    core_widths: Annotated[tuple[Annotated[int, Ge(1)], ...], MinLen(1)] = (512, 256)
    """Of the MLP before the LSTM, or before the heads without one."""
    lstm_width: Annotated[int, Ge(1)] = 256

    def __post_init__(self) -> None:
        if self.core == "attention" and self.key_channels >= self.vision_channels:
            raise ConfigError(
                f"model.key_channels: {self.key_channels} of {self.vision_channels} vision channels leave no values"
            )

    @property
    def image(self) -> tuple[int, int]:
        """Rows and columns of the features."""
        rows, columns = self.rows, self.columns
        for convolution in self.convolutions:
            rows, columns = -(-rows // convolution.stride), -(-columns // convolution.stride)
        return rows, columns

    @property
    def code_channels(self) -> int:
        """Of the spatial basis."""
        return 0 if self.basis == "none" else (2 * self.frequencies) ** 2

    def build(self) -> "AttentionAgent":
        """An agent with fresh weights from torch's global generator."""
        from seqloom.systems.attention_agent.model import AttentionAgent

        return AttentionAgent(self)

    def training_bytes(self, run: "Run") -> int:
        """Estimated peak of all tensors of a training, in bytes."""
        from seqloom.systems.attention_agent.budget import training_bytes

        return training_bytes(run)


@config
class VTraceConfig:
    """V-trace actor-critic (IMPALA): one step for each rollout, acted with the weights of one step before."""

    rho_bar: Annotated[float, Gt(0)] = 1.0
    """Largest importance ratio of values and advantages."""
    c_bar: Annotated[float, Gt(0)] = 1.0
    """Largest importance ratio that carries later corrections back."""


@config
class PpoConfig:
    """Proximal policy optimisation: several steps for each rollout, acted with the weights before them."""

    epochs: Annotated[int, Ge(1)] = 4
    minibatches: Annotated[int, Ge(1)] = 4
    """Of whole unrolls, so that recurrent state stays in order."""
    clip: Annotated[float, Interval(gt=0, lt=1)] = 0.1
    value_clip: Annotated[float, Gt(0)] | None = None
    """How far from the old value the value loss may gain by moving; None does not clip."""
    gae_lambda: Annotated[float, Interval(ge=0, le=1)] = 0.95
    normalize_advantages: bool = True
    """To mean 0 and deviation 1 within each minibatch."""


@config
class AgentTaskConfig:
    """Learning by acting, with exactly one of `vtrace` and `ppo`."""

    memory_settings: ClassVar[tuple[str, ...]] = ("task.micro_environments", "task.environments", "task.unroll")

    environment: EnvironmentConfig
    vtrace: VTraceConfig | None = None
    ppo: PpoConfig | None = None
    environments: Annotated[int, Ge(1)] = 32
    """Copies of the environment; each gives one unroll to a rollout."""
    group: Annotated[int, Ge(1)] = 16
    """Environments that share a forward pass of acting."""
    actors: Annotated[int, Ge(0)] = 0
    """Processes that act while the learner learns; 0 acts in the learner's process. Changes speed, never bits."""
    unroll: Annotated[int, Ge(1)] = 20
    """Steps of a rollout, back to whose beginning gradients flow."""
    micro_environments: Annotated[int, Ge(1)] | None = None
    """Unrolls per forward pass of learning; None takes the whole batch at once. Changes memory and speed only."""
    discount: Annotated[float, Interval(ge=0, lt=1)] = 0.99
    reward_clip: Annotated[float, Gt(0)] | None = 1.0
    """Rewards are learned from as if they lay between minus and plus this; None takes them as they are."""
    value_cost: Annotated[float, Gt(0)] = 0.5
    entropy_cost: Annotated[float, Ge(0)] = 0.01
    evaluate_episodes: Annotated[int, Ge(1)] = 64
    evaluate_greedy: bool = False
    """Take the likeliest action in evaluations instead of drawing one."""
    evaluate_steps: Annotated[int, Ge(1)] = 27_000
    """Steps after which an episode is given up in evaluations, and counts with what it has reached."""

    def __post_init__(self) -> None:
        if (self.vtrace is None) == (self.ppo is None):
            found = "neither is" if self.vtrace is None else "both are"
            raise ConfigError(f"task: give either vtrace or ppo; {found} here")
        if self.environments % self.group:
            raise ConfigError(f"task.group: {self.group} does not divide environments = {self.environments}")
        if self.actors > self.environments // self.group:
            raise ConfigError(
                f"task.actors: {self.actors} actors for {self.environments // self.group} groups of environments; an "
                "actor needs a group at least, so lower this or task.group"
            )
        if self.environments % self.minibatches:
            raise ConfigError(
                f"task.ppo.minibatches: {self.minibatches} does not divide environments = {self.environments}"
            )
        if self.micro_environments is not None and self.batch % self.micro_environments:
            raise ConfigError(
                f"task.micro_environments: {self.micro_environments} does not divide {self.batch} unrolls"
            )

    @property
    def minibatches(self) -> int:
        return self.ppo.minibatches if self.ppo is not None else 1

    @property
    def batch(self) -> int:
        """Unrolls of an optimizer step."""
        return self.environments // self.minibatches

    def build(self, run: "Run", device: "torch.device", progress: Progress | None = None) -> "AgentTask":
        """Open the environments.

        Raises:
            ConfigError: there is no such environment, or the model does not fit it.
        """
        from seqloom.systems.attention_agent.task import AgentTask

        return AgentTask(run, device)


@config
class Run(BaseRun):
    """A training of an agent."""

    system: Literal["attention_agent"] = "attention_agent"
    name: str = "custom"
    model: AgentConfig
    task: AgentTaskConfig
