"""What an agent costs: parameters, arithmetic per frame, memory of a training. Pure arithmetic.

    convolution    k² c_in c_out + c_out
    ConvLSTM       9 (c_in + C) 4C + 4C
    query MLP      two linear layers, H -> Q -> N (c_k + c_s)
    core           linear layers from N (c_v + c_k + 2 c_s) + 1 + |A|
    LSTM           4H (I + H) + 8H
    heads          H (|A| + 1) + |A| + 1

Paper: attention-augmented agent, sections 2.8 and 2.9 of the derived counts: 2,191,379 parameters at |A| = 18.
"""

from dataclasses import asdict, dataclass
from itertools import pairwise
from math import prod
from typing import Any

from seqloom.systems.attention_agent.config import AgentConfig, Run


@dataclass(frozen=True)
class Budget:
    """Counts are exact; FLOPs count a multiply-add as two.

    Attributes:
        vision: parameters of convolutions and ConvLSTM.
        parameters: all of them.
        flops_per_frame: forward pass of one step.
        state_numbers: what is remembered of one environment between steps.
        feature_rows, feature_columns: positions that can be looked at.
    """

    vision: int
    parameters: int
    flops_per_frame: int
    state_numbers: int
    feature_rows: int
    feature_columns: int


def budget(config: AgentConfig) -> Budget:
    """Size of a configuration, from the formulas alone."""
    rows, columns = config.image
    positions, channels = rows * columns, config.convolutions[-1].channels
    vision, multiplied = _convolutions(config)
    inner, queries, state = channels * positions, 0, 0
    if config.core == "attention":
        c, code = config.vision_channels, config.code_channels
        key, value = config.key_channels + code, c - config.key_channels + code
        vision += 36 * (channels + c) * c + 4 * c
        multiplied += positions * 36 * (channels + c) * c + config.queries * positions * (key + value)
        inner, queries, state = config.queries * (key + value), config.queries * key, 2 * c * positions
        if config.query_kind == "top_down":
            layers = _linear(config.lstm_width, config.query_width, queries)
            queries, multiplied = layers[0], multiplied + layers[1]
    core, core_multiplied = _linear(inner + 1 + config.actions, *config.core_widths)
    width, lstm = config.core_widths[-1], 0
    if config.core != "feed_forward":
        h = config.lstm_width
        lstm, width, state = 4 * h * (width + h) + 8 * h, h, state + 2 * h
        core_multiplied += lstm - 8 * h
    heads, heads_multiplied = _linear(width, config.actions + 1)
    return Budget(
        vision=vision,
        parameters=vision + queries + core + lstm + heads,
        flops_per_frame=2 * (multiplied + core_multiplied + heads_multiplied),
        state_numbers=state,
        feature_rows=rows,
        feature_columns=columns,
    )


def headline(config: AgentConfig) -> dict[str, int]:
    """What `seqloom list` prints about an agent."""
    total = budget(config).parameters
    return {"total_parameters": total, "active_with_head": total}


def describe(config: AgentConfig) -> dict[str, dict[str, Any]]:
    """What `seqloom show` prints about an agent."""
    cost = asdict(budget(config))
    state = cost.pop("state_numbers")
    return {
        "size": {"total_parameters": cost.pop("parameters"), **cost},
        "memory_of_an_environment": {"state_bytes": 4 * state, "frame_bytes": config.rows * config.columns * 3},
    }


def training_bytes(run: Run) -> int:
    """Estimated peak of all tensors of a training.

    Weights, gradients and two moments; of every frame that a forward pass learns from, what autograd keeps (the ReLUs'
    results, of the ConvLSTM four gates, their sum, two tanhs and three products, features by position, of each query
    its map and inputs of linear layers); two rollouts of frames as bytes, and their agents' states.
    """
    config, task = run.model, run.task
    cost = budget(config)
    positions, frame = cost.feature_rows * cost.feature_columns, config.rows * config.columns * 3
    kept, rows, columns = frame, config.rows, config.columns
    for convolution in config.convolutions:
        padded = rows * columns
        rows, columns = -(-rows // convolution.stride), -(-columns // convolution.stride)
        kept += 2 * convolution.channels * rows * columns + (
            3 * padded if padded == config.rows * config.columns else 0
        )
    width = config.convolutions[-1].channels * positions
    if config.core == "attention":
        code = config.code_channels
        width = config.queries * (config.vision_channels + 2 * code)
        kept += 15 * config.vision_channels * positions + 3 * config.queries * positions
        kept += 2 * width + 2 * config.query_width
    kept += 2 * width + 3 * sum(config.core_widths) + 8 * config.lstm_width
    learned = (task.micro_environments or task.batch) * (task.unroll + 1)
    rollouts = 2 * task.environments * ((task.unroll + 1) * frame + 4 * cost.state_numbers)
    return 16 * cost.parameters + 4 * kept * learned + rollouts


def _convolutions(config: AgentConfig) -> tuple[int, int]:
    """Parameters, and multiply-adds per frame."""
    parameters = multiplied = 0
    channels, size = 3, (config.rows, config.columns)
    for convolution in config.convolutions:
        weights = convolution.kernel**2 * channels * convolution.channels
        size = -(-size[0] // convolution.stride), -(-size[1] // convolution.stride)
        parameters += weights + convolution.channels
        multiplied += weights * prod(size)
        channels = convolution.channels
    return parameters, multiplied


def _linear(*widths: int) -> tuple[int, int]:
    """Parameters, and multiply-adds, of linear layers in a row."""
    weights = sum(before * after for before, after in pairwise(widths))
    return weights + sum(widths[1:]), weights
