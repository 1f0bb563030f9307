"""What a hybrid model costs: parameters, tensors, arithmetic, cache and state. Pure arithmetic.

Per layer, including its input norm (h width, d inner width, c conv channels, i latent or full width):

    M : h + h(2d + 2GN + H) + (K+1)c + 3H + d + dh          * : h + 2h·head(heads + kv)
    - : h + 2hf                                             E : h + Eh + E + 2E·m·i + 2hs (+ 2hℓ)

Numbers that the reports and the serving engines count in their own way are counted that way: a convolution window has
all its `conv_width` columns, though ours leaves out the one that the next step never reads.
Paper: Nemotron-H, Nano 2, Nemotron 3; every published total is reproduced exactly (tests).
"""

from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

from seqloom.nn.pattern import KINDS, parse_pattern
from seqloom.systems.hybrid_lm.config import HybridConfig


@dataclass(frozen=True)
class Budget:
    """Counts are exact; FLOPs count a multiply-add as two and the context-free work of one token only.

    Attributes:
        parameters: all of the model without the prediction block.
        mtp_parameters: the prediction block.
        active: parameters that one token touches, without embedding and head.
        active_with_head: the same with the output head.
        active_with_embeddings: the same with output head and embedding table.
        tensors: tensors of a public folder with one tensor for each expert's matrix, prediction block included.
        stacked_tensors: the same where the experts of a layer are stacked in one tensor.
        weight_bytes_in_bf16: on disk and in memory; what the public layout asks FP32 for is counted as FP32.
        flops_per_token: forward pass of one token at empty context.
    """

    parameters: int
    mtp_parameters: int
    active: int
    active_with_head: int
    active_with_embeddings: int
    tensors: int
    stacked_tensors: int
    weight_bytes_in_bf16: int
    flops_per_token: int


@dataclass(frozen=True)
class StateBudget:
    """What generation remembers of one sequence, at 2 bytes a number and FP32 SSM state (Nemotron 3 reports).

    Attributes:
        inner_width: channels of a Mamba layer between its projections, d.
        conv_channels: channels of its convolution, d + 2GN.
        in_proj_rows: rows of its input projection, 2d + 2GN + H.
        kv_bytes_per_token: keys and values of one token over all attention layers.
        ssm_elements: numbers of SSM state over all Mamba layers.
        ssm_bytes: the same in bytes.
        conv_elements: numbers of the convolution windows, all columns counted.
        state_bytes: both kinds of Mamba state, whatever the length of the sequence.
        state_bytes_held_here: what our engine holds of it; its windows have one column less.
        crossover_tokens: context length at which keys and values weigh as much as the state; None without attention.
    """

    inner_width: int
    conv_channels: int
    in_proj_rows: int
    kv_bytes_per_token: int
    ssm_elements: int
    ssm_bytes: int
    conv_elements: int
    state_bytes: int
    state_bytes_held_here: int
    crossover_tokens: int | None

    def cache_bytes(self, tokens: int) -> int:
        """All that is remembered of a sequence of so many tokens."""
        return self.kv_bytes_per_token * tokens + self.state_bytes


def budget(config: HybridConfig) -> Budget:
    """Size of a configuration, from the formulas alone."""
    pattern, mtp_pattern = parse_pattern(config.pattern), config.mtp.pattern if config.mtp else ""
    h, table = config.width, config.vocab_size * config.width
    parameters = sum(layer_parameters(letter, config) for letter in pattern) + h + 2 * table
    active = sum(layer_parameters(letter, config, active=True) for letter in pattern) + h
    mtp = sum(layer_parameters(letter, config) for letter in mtp_pattern) + 2 * h * h + 3 * h if mtp_pattern else 0
    around = 3 + (4 if mtp_pattern else 0)  # embedding, norm, head; fusion and three norms of the prediction block
    letters = pattern + mtp_pattern
    return Budget(
        parameters=parameters,
        mtp_parameters=mtp,
        active=active,
        active_with_head=active + table,
        active_with_embeddings=active + 2 * table,
        tensors=around + sum(layer_tensors(letter, config) for letter in letters),
        stacked_tensors=around + sum(layer_tensors(letter, config, stacked=True) for letter in letters),
        weight_bytes_in_bf16=2 * (parameters + mtp) + 2 * sum(_fp32_parameters(letter, config) for letter in letters),
        flops_per_token=2 * (active - h + table) + _scan_flops(config),
    )


def state_budget(config: HybridConfig) -> StateBudget:
    """Cache and state of one sequence, from the formulas alone."""
    pattern = parse_pattern(config.pattern)
    kv = inner = conv = rows = ssm = taps = 0
    if config.attention is not None:
        kv = pattern.count("*") * 2 * config.attention.kv_heads * config.attention.head_width * 2
    if config.mamba is not None:
        m = config.mamba
        inner, taps = m.heads * m.head_width, m.conv_width
        conv = inner + 2 * m.groups * m.state_width
        rows = inner + conv + m.heads
        ssm = pattern.count("M") * inner * m.state_width
    windows = pattern.count("M") * conv
    state = 4 * ssm + 2 * windows * taps
    return StateBudget(
        inner_width=inner,
        conv_channels=conv,
        in_proj_rows=rows,
        kv_bytes_per_token=kv,
        ssm_elements=ssm,
        ssm_bytes=4 * ssm,
        conv_elements=windows * taps,
        state_bytes=state,
        state_bytes_held_here=state - 2 * windows,
        crossover_tokens=round(state / kv) if kv else None,
    )


def layer_parameters(letter: str, config: HybridConfig, active: bool = False) -> int:
    """Parameters of one layer with its norm; `active` counts only the experts that one token visits."""
    return _plain_parameters(letter, config, active) + _stability_parameters(letter, config, active)


def _plain_parameters(letter: str, config: HybridConfig, active: bool) -> int:
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


def _stability_parameters(letter: str, config: HybridConfig, active: bool) -> int:
    """What stability methods add to one layer: gains (and biases) of norms, scales; or take from it."""
    h, s = config.width, config.stability
    per_gain = 2 if s.norm == "layer" else 1
    added = h if s.layer_scale is not None else 0
    if s.output_norm and letter != "M":
        added += per_gain * h
    if letter == "*":
        assert config.attention is not None
        a = config.attention
        queries, keys = (a.heads, a.kv_heads) if s.per_head else (1, 1)
        values = {"none": 0, "head": keys, "width": a.kv_heads}[s.v_norm]
        heads = values + (queries + keys if s.qk_norm else 0)
        added += per_gain * a.head_width * heads - (0 if s.pre_norm else h)
    if s.sigma_reparam:
        matrices = {"M": 2, "*": 4, "-": 2, "E": 2}[letter]
        if letter == "E" and config.moe is not None:
            matrices += 2 * (config.moe.top_k if active else config.moe.experts)
            matrices += 2 if config.moe.latent_width else 0
        added += matrices
    return added


def layer_tensors(letter: str, config: HybridConfig, stacked: bool = False) -> int:
    """Tensors of one layer with its norm in a public folder; `stacked` counts the experts' matrices as two."""
    if letter != "E":
        return {"M": 9, "*": 5, "-": 3}[letter]
    assert config.moe is not None
    return (2 if stacked else 2 * config.moe.experts) + 5 + (2 if config.moe.latent_width else 0)


def headline(config: HybridConfig) -> dict[str, int]:
    """What `seqloom list` prints about a model."""
    cost = budget(config)
    return {
        "total_parameters": cost.parameters + cost.mtp_parameters,
        "active_with_head": cost.active_with_head,
        "layers": len(parse_pattern(config.pattern)),
    }


def describe(config: HybridConfig) -> dict[str, dict[str, Any]]:
    """What `seqloom show` prints about a model: its size, and what it remembers of a sequence."""
    cost, state, pattern = budget(config), state_budget(config), parse_pattern(config.pattern)
    counted = Counter(pattern)
    size = {
        "layers": len(pattern),
        "layer_kinds": ", ".join(f"{counted[letter]} {name}" for letter, name in KINDS.items() if counted[letter]),
        "total_parameters": cost.parameters + cost.mtp_parameters,
        **asdict(cost),
    }
    cache = {f"cache_bytes_at_{tokens}_tokens": state.cache_bytes(tokens) for tokens in (8192, 131072, 1048576)}
    return {"size": size, "memory_of_a_sequence": {**asdict(state), **cache}}


def _fp32_parameters(letter: str, config: HybridConfig) -> int:
    """Numbers of a layer that stay FP32 in every folder: A_log, D and dt_bias; the router's selection bias."""
    if letter == "M":
        assert config.mamba is not None
        return 3 * config.mamba.heads
    if letter == "E":
        assert config.moe is not None
        return config.moe.experts
    return 0


def _scan_flops(config: HybridConfig) -> int:
    """Multiply-adds of the chunked scan per token, counted twice: 2Q(GN + d) + 4dN a layer (Nemotron-H)."""
    if config.mamba is None:
        return 0
    m = config.mamba
    inner = m.heads * m.head_width
    per_layer = 2 * m.chunk * (m.groups * m.state_width + inner) + 4 * inner * m.state_width
    return config.pattern.count("M") * per_layer
