"""What the header of a GGUF file tells llama.cpp of a model's shape, and which shapes it knows at all."""

from typing import Any

from seqloom.core.errors import ConfigError
from seqloom.nn.pattern import parse_pattern
from seqloom.nn.stability import Stability
from seqloom.systems.hybrid_lm.config import HybridConfig
from seqloom.systems.hybrid_lm.gguf_mixed import expert_widths, is_mixed, shared_width


def refuse_unknown(config: HybridConfig) -> None:
    """
    Raises:
        ConfigError: llama.cpp would compute something else.
    """
    pattern = parse_pattern(config.pattern)
    if config.stability != Stability():
        raise ConfigError("llama.cpp knows none of the stability methods (model.stability) of this model")
    if "M" not in pattern:
        raise ConfigError(f"llama.cpp asks for Mamba layers in a hybrid; the pattern {config.pattern} has none")


def has_block(config: HybridConfig) -> bool:
    """Whether the prediction block can be written."""
    return config.mtp is not None and config.mtp.pattern == "*E" and "E" in config.pattern


def add_shape(gguf: Any, writer: Any, config: HybridConfig) -> None:
    """Write the header's keys for layers, widths and counts."""
    pattern = parse_pattern(config.pattern)
    heads = [config.attention.kv_heads if letter == "*" and config.attention else 0 for letter in pattern]
    hidden = [_hidden(letter, config) for letter in pattern]
    if has_block(config):
        assert config.attention is not None
        heads.append(config.attention.kv_heads)
        hidden.append(_hidden("E", config))
        writer.add_nextn_predict_layers(1)
    writer.add_block_count(len(heads))
    writer.add_vocab_size(config.vocab_size)
    writer.add_embedding_length(config.width)
    writer.add_feed_forward_length(hidden)
    writer.add_head_count(config.attention.heads if config.attention else 1)
    writer.add_head_count_kv(heads)
    writer.add_layer_norm_eps(config.norm_eps)
    writer.add_layer_norm_rms_eps(config.norm_eps)
    if config.attention is not None:
        writer.add_key_length(config.attention.head_width)
        writer.add_value_length(config.attention.head_width)
    mamba = config.mamba
    assert mamba is not None
    writer.add_ssm_conv_kernel(mamba.conv_width)
    writer.add_ssm_inner_size(mamba.heads * mamba.head_width)
    writer.add_ssm_state_size(mamba.state_width)
    writer.add_ssm_time_step_rank(mamba.heads)
    writer.add_ssm_group_count(mamba.groups)
    if (moe := config.moe) is not None and "E" in pattern:
        writer.add_expert_count(moe.experts)
        writer.add_expert_used_count(moe.top_k)
        if is_mixed(config):
            key = gguf.Keys.LLM.EXPERT_FEED_FORWARD_LENGTH.format(arch=writer.arch)
            writer.add_array(key, expert_widths(config, len(heads)))
        else:
            writer.add_expert_feed_forward_length(moe.expert_width)
        writer.add_expert_shared_feed_forward_length(shared_width(config))
        writer.add_expert_shared_count(1)
        writer.add_expert_weights_norm(moe.normalize_top_k)
        writer.add_expert_weights_scale(moe.routed_scaling)
        if moe.latent_width is not None:
            writer.add_moe_latent_size(moe.latent_width)
        if moe.top_groups < moe.expert_groups:  # else every group is chosen, which is as if there were none
            writer.add_expert_group_count(moe.expert_groups)
            writer.add_expert_group_used_count(moe.top_groups)


def _hidden(letter: str, config: HybridConfig) -> int:
    if letter == "-" and config.mlp is not None:
        return config.mlp.hidden_width
    return config.moe.expert_width if letter == "E" and config.moe is not None else 0
