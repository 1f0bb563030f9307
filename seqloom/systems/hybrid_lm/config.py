"""Shapes of a hybrid language model, its text task, and the run that joins them.

Field names are the field's own; the public config.json spelling is the business of `folder.py`.
Paper: Nemotron-H, Nano 2, Nemotron 3; parameter formulas in `budget.py`.
"""

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from seqloom.core.config import Ge, Gt, Interval, config
from seqloom.core.errors import ConfigError
from seqloom.core.progress import Progress
from seqloom.data.config import DataConfig
from seqloom.nn.pattern import parse_pattern
from seqloom.nn.stability import Stability
from seqloom.train.config import ParallelConfig
from seqloom.train.run import Run as BaseRun

if TYPE_CHECKING:
    import torch

    from seqloom.systems.hybrid_lm.model import HybridLM
    from seqloom.systems.hybrid_lm.task import TextTask

PUBLIC_TYPE, OWN_TYPE = MODEL_TYPES = ("nemotron_h", "seqloom_hybrid")
"""`model_type` of a folder: that of the published models where they are what it holds, else one that their readers,
which would compute something else, refuse."""


@config
class MambaConfig:
    """Mamba-2 layers (pattern letter M)."""

    heads: Annotated[int, Ge(1)]
    head_width: Annotated[int, Ge(1)]
    state_width: Annotated[int, Ge(1)]
    groups: Annotated[int, Ge(1)] = 8
    """Groups of heads that share B and C and one statistic of the gated norm."""
    conv_width: Annotated[int, Ge(2)] = 4
    chunk: Annotated[int, Ge(1)] = 128
    """Tokens per chunk of the scan; changes speed and rounding, never meaning."""


@config
class AttentionConfig:
    """Attention layers (letter *): grouped queries, no positions, no bias."""

    heads: Annotated[int, Ge(1)]
    kv_heads: Annotated[int, Ge(1)]
    head_width: Annotated[int, Ge(1)] = 128


@config
class MlpConfig:
    """Squared-ReLU MLP layers (letter -)."""

    hidden_width: Annotated[int, Ge(1)]


@config
class MoeConfig:
    """Mixture-of-experts layers (letter E); with `latent_width` they are LatentMoE."""

    experts: Annotated[int, Ge(1)]
    top_k: Annotated[int, Ge(1)]
    expert_width: Annotated[int, Ge(1)]
    shared_width: Annotated[int, Ge(1)]
    """Total hidden width of the always-on shared expert."""
    latent_width: Annotated[int, Ge(1)] | None = None
    routed_scaling: Annotated[float, Gt(0)] = 1.0
    normalize_top_k: bool = True
    expert_groups: Annotated[int, Ge(1)] = 1
    top_groups: Annotated[int, Ge(1)] = 1
    bias_rate: Annotated[float, Ge(0)] = 1e-3
    """Step of the selection bias after each optimizer step (auxiliary-loss-free balancing)."""
    balance_weight: Annotated[float, Ge(0)] = 1e-4
    """Weight of the sequence-wise balance loss."""


@config
class MtpConfig:
    """Multi-token prediction: one physical block applied `depth` times."""

    pattern: str = "*E"
    depth: Annotated[int, Ge(1)] = 2
    """Depths trained; drafting may go deeper."""
    loss_weight: Annotated[float, Ge(0)] = 0.3
    """λ of CE_main + λ/D Σ CE_k."""


@config
class HybridConfig:
    """A hybrid Mamba-Transformer language model."""

    pattern: str
    """One character a layer: M Mamba-2, * attention, - MLP, E experts."""
    vocab_size: Annotated[int, Ge(8)]
    width: Annotated[int, Ge(1)]
    mamba: MambaConfig | None = None
    attention: AttentionConfig | None = None
    mlp: MlpConfig | None = None
    moe: MoeConfig | None = None
    mtp: MtpConfig | None = None
    stability: Stability = Stability()
    norm_eps: Annotated[float, Gt(0)] = 1e-5
    init_std: Annotated[float, Gt(0)] = 0.014
    """σ of linear weights; output projections use σ/√layers."""

    def __post_init__(self) -> None:
        parse_pattern(self.pattern, "model.pattern")
        letters = set(self.pattern)
        if self.mtp is not None:
            letters |= set(parse_pattern(self.mtp.pattern, "model.mtp.pattern"))
            if "M" in self.mtp.pattern:
                raise ConfigError("model.mtp.pattern: the prediction block has no Mamba layers; use *, - and E")
        for letter, field in (("M", "mamba"), ("*", "attention"), ("-", "mlp"), ("E", "moe")):
            if letter in letters and getattr(self, field) is None:
                raise ConfigError(
                    f"model.{field}: the pattern '{self.pattern}' has '{letter}' layers, so this is required"
                )
        if self.mamba is not None and self.mamba.heads % self.mamba.groups:
            raise ConfigError(f"model.mamba: {self.mamba.heads} heads cannot be split into {self.mamba.groups} groups")
        if self.attention is not None and self.attention.heads % self.attention.kv_heads:
            raise ConfigError(
                f"model.attention: {self.attention.heads} heads cannot share {self.attention.kv_heads} key-value heads"
            )
        if self.moe is not None:
            self._check_experts(self.moe)

    @staticmethod
    def _check_experts(moe: MoeConfig) -> None:
        if moe.top_k > moe.experts:
            raise ConfigError(f"model.moe.top_k: {moe.top_k} of {moe.experts} experts cannot be chosen")
        if moe.experts % moe.expert_groups or moe.top_groups > moe.expert_groups:
            raise ConfigError(
                f"model.moe: {moe.experts} experts in {moe.expert_groups} groups, {moe.top_groups} of them chosen, "
                "is impossible; groups must divide experts and top_groups must not exceed expert_groups"
            )
        if moe.top_k > moe.experts // moe.expert_groups * moe.top_groups:
            raise ConfigError(
                f"model.moe.top_k: {moe.top_k} experts do not fit in {moe.top_groups} groups of "
                f"{moe.experts // moe.expert_groups}"
            )

    def build(self) -> "HybridLM":
        """A model with fresh weights from torch's global generator."""
        from seqloom.systems.hybrid_lm.model import HybridLM

        return HybridLM(self)

    def training_bytes(self, run: "Run") -> int:
        """Estimated peak of all tensors of a training, in bytes."""
        from seqloom.systems.hybrid_lm.training_memory import training_bytes

        return training_bytes(run)


@config
class TextTaskConfig:
    """Next-token prediction on packed rows of text."""

    memory_settings: ClassVar[tuple[str, ...]] = ("task.micro_rows", "task.sequence_length")

    data: DataConfig
    sequence_length: Annotated[int, Ge(8)] = 512
    """Tokens per row; documents are packed, and never see each other."""
    batch_rows: Annotated[int, Ge(1)] = 8
    """Rows per optimizer step, over all micro-batches."""
    micro_rows: Annotated[int, Ge(1)] | None = None
    """Rows per forward pass; None takes the whole batch at once. Changes memory and speed, never the gradient."""
    evaluate_rows: Annotated[int, Ge(1)] = 64
    """Most rows of held-out text per evaluation."""

    def __post_init__(self) -> None:
        if self.micro_rows is not None and self.batch_rows % self.micro_rows:
            raise ConfigError(f"task.micro_rows: {self.micro_rows} does not divide batch_rows = {self.batch_rows}")

    def build(self, run: "Run", device: "torch.device", progress: Progress | None = None) -> "TextTask":
        """Prepare or open the data; raises DataError before anything is allocated."""
        from seqloom.systems.hybrid_lm.task import TextTask

        return TextTask(run, device, progress)


@config
class LoraConfig:
    """Low-rank adapters that learn in place of the model: W + (alpha / rank) B A, everything else frozen."""

    rank: Annotated[int, Ge(1)] = 16
    alpha: Annotated[float, Gt(0)] = 32.0
    rank_stabilised: bool = False
    """Scale by alpha / √rank instead, which keeps steps alike over ranks."""
    dropout: Annotated[float, Interval(ge=0, lt=1)] = 0.0
    """Share of an adapter's inputs dropped in training; routed experts cannot have it."""
    targets: tuple[str, ...] = ("*",)
    """Shell patterns over projections: without a dot over the last name ("in_proj", "*_proj"), else over the whole one
    ("backbone.layers.*.mixer.q_proj"). By default every projection of every layer."""
    experts: bool = True
    """Give each routed expert an adapter of its own; off leaves expert layers with those of the shared expert and the
    latent projections."""
    leave_out: tuple[Literal["M", "*", "-", "E", "mtp"], ...] = ()
    """Kinds of layers that get no adapters: letters of the pattern, or "mtp" for the prediction block."""
    min_coverage: Annotated[float, Interval(ge=0, le=1)] = 1.0
    """Least share of the layers of each kind, but those left out, that must get an adapter."""

    @property
    def scale(self) -> float:
        """What B A is multiplied by."""
        return self.alpha / (self.rank**0.5 if self.rank_stabilised else self.rank)


@config
class Run(BaseRun):
    """A training of a hybrid language model."""

    system: Literal["hybrid_lm"] = "hybrid_lm"
    name: str = "custom"
    model: HybridConfig
    task: TextTaskConfig
    adapter: LoraConfig | None = None
    """Train adapters on the frozen model of `init_from` instead of its weights."""

    def __post_init__(self) -> None:
        if self.adapter is None:
            return
        if self.init_from is None:
            raise ConfigError("adapter: adapters need a model to sit on; name its folder with --model FOLDER")
        if self.train.optimizer.kind != "adamw":
            raise ConfigError(
                f"train.optimizer.kind: '{self.train.optimizer.kind}' orthogonalises whole matrices and does not fit "
                "the thin factors of adapters; use 'adamw'"
            )

    def build_model(self) -> "HybridLM":
        if self.init_from is None:
            return self.model.build()
        from seqloom.systems.hybrid_lm.fine_tune import build_on_base

        return build_on_base(self)

    def starting_from(self, folder: str) -> "Run":
        from seqloom.systems.hybrid_lm.fine_tune import starting_from

        return starting_from(self, folder)

    def refuse_indivisible(self, parallel: ParallelConfig) -> None:
        from seqloom.systems.hybrid_lm.divide import refuse_indivisible

        refuse_indivisible(self, parallel)

    def adapter_report(self) -> dict[str, Any]:
        if self.adapter is None:
            return {}
        from seqloom.systems.hybrid_lm.adapter_targets import choose_targets

        chosen = choose_targets(self.model, self.adapter)
        return {"base": self.init_from, "rank": self.adapter.rank, "coverage": chosen.coverage()}
