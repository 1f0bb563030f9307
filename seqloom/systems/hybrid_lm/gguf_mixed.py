"""MLP layers of a model that has experts as well, in the form that llama.cpp can hold them.

There every feed-forward layer of such a model has experts. An MLP layer is written as one whose shared expert is the
MLP and whose routed experts are zeros: relu(0)^2 = 0, so the layer computes the same. All shared experts are as wide as
the widest there, so narrower ones end in zeros, which add nothing either.
"""

from collections.abc import Callable

from torch import Tensor
from torch.nn.functional import pad

from seqloom.nn.pattern import parse_pattern
from seqloom.systems.hybrid_lm.config import HybridConfig

IDLE_WIDTH = 32
"""Hidden width of routed experts that are zeros; a block of every format."""


def is_mixed(config: HybridConfig) -> bool:
    """Whether a model has layers of both kinds."""
    return {"-", "E"} <= set(parse_pattern(config.pattern))


def shared_width(config: HybridConfig) -> int:
    """Hidden width of all shared experts there."""
    assert config.moe is not None
    return max(config.moe.shared_width, config.mlp.hidden_width if is_mixed(config) and config.mlp else 0)


def expert_widths(config: HybridConfig, layers: int) -> list[int]:
    """Hidden width of the routed experts of each layer; where there are none it means nothing."""
    assert config.moe is not None
    pattern = parse_pattern(config.pattern)
    return [IDLE_WIDTH if pattern[at : at + 1] == "-" else config.moe.expert_width for at in range(layers)]


def as_shared(
    target: str, shape: tuple[int, ...], read: Callable[[], Tensor], config: HybridConfig
) -> tuple[str, tuple[int, ...], Callable[[], Tensor]]:
    """Name, shape and numbers of a tensor of a mixed model there."""
    width = shared_width(config)
    target = target.replace(".ffn_up.", ".ffn_up_shexp.").replace(".ffn_down.", ".ffn_down_shexp.")
    if ".ffn_up_shexp." in target:
        return target, (width, shape[1]), lambda: pad(read(), (0, 0, 0, width - shape[0]))
    if ".ffn_down_shexp." in target:
        return target, (shape[0], width), lambda: pad(read(), (0, width - shape[1]))
    return target, shape, read


def idle_experts(config: HybridConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of what is zero in each MLP layer there."""
    moe = config.moe
    assert moe is not None
    inner = moe.latent_width or config.width
    shapes: dict[str, tuple[int, ...]] = {
        "ffn_gate_inp.weight": (moe.experts, config.width),
        "exp_probs_b.bias": (moe.experts,),
        "ffn_up_exps.weight": (moe.experts, IDLE_WIDTH, inner),
        "ffn_down_exps.weight": (moe.experts, inner, IDLE_WIDTH),
    }
    if moe.latent_width is not None:
        shapes["ffn_latent_down.weight"] = (inner, config.width)
        shapes["ffn_latent_up.weight"] = (config.width, inner)
    return shapes
