"""What a hybrid model costs: parameters, arithmetic, cache and state bytes, training memory. Pure arithmetic.

Per layer, including its input norm (h width, d inner width, c conv channels, i latent or full width):

    M : h + h(2d + 2GN + H) + (K+1)c + 3H + d + dh          * : h + 2h·head(heads + kv)
    - : h + 2hf                                             E : h + Eh + E + 2E·m·i + 2hs (+ 2hℓ)

Paper: Nemotron-H, Nano 2, Nemotron 3; every published total is reproduced exactly (tests).
"""

from dataclasses import asdict, dataclass
from typing import Any

from seqloom.nn.pattern import parse_pattern
from seqloom.systems.hybrid_lm.config import HybridConfig, Run


@dataclass(frozen=True)
class Budget:
    """Counts are exact; FLOPs count a multiply-add as two and the context-free work of one token only.

    Attributes:
        parameters: all of the model without the prediction block.
        mtp_parameters: the prediction block.
        active: parameters that one token touches, without embedding and head.
        active_with_head: the same with the output head.
        flops_per_token: forward pass of one token at empty context.
        kv_bytes_per_token: keys and values of one token over all attention layers (2 bytes a number).
        state_bytes: FP32 SSM state and 2-byte convolution window of one sequence, whatever its length.
        crossover_tokens: context length at which keys and values weigh as much as the state.
    """

    parameters: int
    mtp_parameters: int
    active: int
    active_with_head: int
    flops_per_token: int
    kv_bytes_per_token: int
    state_bytes: int
    crossover_tokens: int | None


def budget(config: HybridConfig) -> Budget:
    """Cost of a configuration, from the formulas alone."""
    pattern = parse_pattern(config.pattern)
    layers = sum(layer_parameters(letter, config) for letter in pattern)
    active = sum(layer_parameters(letter, config, active=True) for letter in pattern)
    h, table = config.width, config.vocab_size * config.width
    mtp = 0
    if config.mtp is not None:
        mtp = sum(layer_parameters(letter, config) for letter in config.mtp.pattern) + 2 * h * h + 3 * h
    kv, state = kv_bytes_per_token(config), state_bytes(config)
    return Budget(
        parameters=layers + h + 2 * table,
        mtp_parameters=mtp,
        active=active + h,
        active_with_head=active + h + table,
        flops_per_token=2 * (active + table) + _scan_flops(config),
        kv_bytes_per_token=kv,
        state_bytes=state,
        crossover_tokens=state // kv if kv else None,
    )


def layer_parameters(letter: str, config: HybridConfig, active: bool = False) -> int:
    """Parameters of one layer with its norm; `active` counts only the experts that one token visits."""
    h = config.width
    if letter == "M":
        assert config.mamba is not None
        m = config.mamba
        inner, shared = m.heads * m.head_width, 2 * m.groups * m.state_width
        conv = inner + shared
        return h + h * (inner + conv + m.heads) + (m.conv_width + 1) * conv + 3 * m.heads + inner + inner * h
    if letter == "*":
        assert config.attention is not None
        a = config.attention
        return h + 2 * h * a.head_width * (a.heads + a.kv_heads)
    if letter == "-":
        assert config.mlp is not None
        return h + 2 * h * config.mlp.hidden_width
    assert config.moe is not None
    e = config.moe
    inner = e.latent_width or h
    latent = 2 * h * e.latent_width if e.latent_width else 0
    visited = e.top_k if active else e.experts
    return h + e.experts * h + e.experts + 2 * visited * e.expert_width * inner + 2 * h * e.shared_width + latent


def kv_bytes_per_token(config: HybridConfig) -> int:
    """Bytes that one more token adds to the cache of a sequence, at 2 bytes a number."""
    if config.attention is None:
        return 0
    a = config.attention
    return config.pattern.count("*") * 2 * a.kv_heads * a.head_width * 2


def state_bytes(config: HybridConfig) -> int:
    """Bytes of SSM state (FP32) and convolution window (2 bytes a number) of one sequence."""
    if config.mamba is None:
        return 0
    m = config.mamba
    ssm = m.heads * m.head_width * m.state_width
    channels = m.heads * m.head_width + 2 * m.groups * m.state_width
    return config.pattern.count("M") * (4 * ssm + 2 * channels * (m.conv_width - 1))


def training_bytes(run: Run) -> int:
    """Estimated peak memory of training: weights, gradients, optimizer state, activations of one micro-batch.

    Activations are what each layer keeps for its backward pass. The process itself (interpreter, torch, tokenizer) is
    not counted: it is there before anything is allocated.
    """
    config, task = run.model, run.task
    cost = budget(config)
    tokens = (task.micro_rows or task.batch_rows) * task.sequence_length
    wide = 2 if run.precision.activations == "bf16" else 4
    depth = config.mtp.depth if config.mtp else 0
    letters = parse_pattern(config.pattern) + (config.mtp.pattern * depth if config.mtp else "")
    kept = [_kept_numbers(letter, config) for letter in letters]
    layers = len(kept) * config.width + max(kept) if run.train.activation_checkpointing else sum(kept)
    heads = (1 + depth) * (4 * config.vocab_size * config.width + 2 * wide * tokens * config.width)  # gradients at once
    masks = 8 * task.sequence_length * tokens if "*" in letters else 0  # which key each query of packed rows may see
    per_parameter = 4 + 4 + 8 + 8  # weight, gradient, two moments, and the optimizer's temporaries
    return per_parameter * (cost.parameters + cost.mtp_parameters) + wide * tokens * layers + heads + masks


def describe(run: Run) -> dict[str, Any]:
    """What `seqloom show` prints about a run's costs."""
    cost = asdict(budget(run.model))
    return {
        "total_parameters": cost["parameters"] + cost["mtp_parameters"],
        **cost,
        "cache_bytes_per_sequence": cost["kv_bytes_per_token"] * run.task.sequence_length + cost["state_bytes"],
        "training_bytes": training_bytes(run),
    }


def _kept_numbers(letter: str, config: HybridConfig) -> int:
    """Numbers per token that a layer keeps for its backward pass (inputs of each product and nonlinearity)."""
    h = config.width
    if letter == "M":
        assert config.mamba is not None
        m = config.mamba
        inner = m.heads * m.head_width
        conv = inner + 2 * m.groups * m.state_width
        # norm, projection, convolution in and out, scan and its states, skip, gate, grouped norm
        return 3 * h + 2 * conv + 9 * inner + inner * m.state_width // m.chunk
    if letter == "*":
        assert config.attention is not None
        a = config.attention
        return 3 * h + a.head_width * (2 * a.heads + 2 * a.kv_heads)
    if letter == "-":
        assert config.mlp is not None
        return 3 * h + 3 * config.mlp.hidden_width
    assert config.moe is not None
    e = config.moe
    return 4 * h + 3 * e.shared_width + e.top_k * e.expert_width + 3 * (e.latent_width or h) + 6 * e.experts


def _scan_flops(config: HybridConfig) -> int:
    """Multiply-adds of the chunked scan per token, counted twice: 2Q(GN + d) + 4dN a layer (Nemotron-H)."""
    if config.mamba is None:
        return 0
    m = config.mamba
    inner = m.heads * m.head_width
    per_layer = 2 * m.chunk * (m.groups * m.state_width + inner) + 4 * inner * m.state_width
    return config.pattern.count("M") * per_layer
