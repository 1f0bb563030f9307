"""config.json of the published folders: every dialect is read, one is written.

Dialects differ in how they spell the layer pattern (string, string with cuts and prediction blocks, list of names of
two kinds), in field names of several ages, and in how they write infinity. What says the same thing twice must say
it alike: the published readers pick one of two contradicting fields in silence, here that is an error. So is what a
field asks for and no model here does. Fields that every reader ignores are ignored here too; fields that name code to
run are never looked at; fields that nobody knows are handed to the caller.
Paper: Nemotron-H, Nano 2, Nemotron 3; the field names are those of their published folders.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

from seqloom.core.checkpoint.json_file import read_config, shown
from seqloom.core.checkpoint.tensor_folder import MOST_TENSORS
from seqloom.core.config import parse, to_data
from seqloom.core.errors import ConfigError
from seqloom.nn.pattern import layer_names, parse_pattern, split_depths
from seqloom.nn.stability import Stability
from seqloom.numerics.recipes import PlainFormat
from seqloom.systems.hybrid_lm.budget import budget
from seqloom.systems.hybrid_lm.config import (
    MODEL_TYPES,
    OWN_TYPE,
    PUBLIC_TYPE,
    AttentionConfig,
    HybridConfig,
    MambaConfig,
    MlpConfig,
    MoeConfig,
    MtpConfig,
)

ARCHITECTURE, OWN_ARCHITECTURE, STABILITY = "NemotronHForCausalLM", "SeqloomHybridLM", "stability"

_FORMATS: dict[str, PlainFormat] = {"float32": "fp32", "bfloat16": "bf16"}
_MOST_LAYERS = 1024
_MOST_SIZE = 1 << 24
_MOST_PARAMETERS = 1 << 50

_OTHER_NAMES = {
    "layers_block_type": ("layer_types",),
    "head_dim": ("attention_head_dim",),
    "n_groups": ("mamba_n_groups",),
    "conv_kernel": ("mamba_d_conv",),
    "chunk_size": ("mamba_chunk_size",),
    "use_conv_bias": ("mamba_conv_bias",),
    "time_step_min": ("mamba_dt_min",),
    "time_step_max": ("mamba_dt_max",),
    "time_step_floor": ("mamba_dt_init_floor",),
    "time_step_limit": ("mamba_dt_limit",),
    "layer_norm_epsilon": ("norm_eps", "rms_norm_eps"),
    "n_routed_experts": ("num_local_experts",),
    "torch_dtype": ("dtype",),
}
"""Field -> what older or newer files call it."""

_ONLY: dict[str, Any] = {
    "tie_word_embeddings": False,
    "use_bias": False,
    "mlp_bias": False,
    "attention_bias": False,
    "mamba_proj_bias": False,
    "use_conv_bias": True,
    "mlp_hidden_act": "relu2",
    "mamba_hidden_act": "silu",
}
"""Fields that have one value in every published model, and for which nothing else is built here."""

_KEPT_IDS = ("pad_token_id", "bos_token_id", "eos_token_id")
_KEPT_STEPS = ("time_step_min", "time_step_max", "time_step_floor")
_KEPT = (*_KEPT_IDS, *_KEPT_STEPS, "max_position_embeddings", "mamba_ssm_cache_dtype", "rescale_prenorm_residual")

_SHAPES = (
    "architectures", "model_type", "vocab_size", "hidden_size", "num_hidden_layers", "hybrid_override_pattern",
    "num_attention_heads", "num_key_value_heads", "intermediate_size", "mamba_num_heads", "mamba_head_dim",
    "ssm_state_size", "num_experts_per_tok", "moe_intermediate_size", "moe_shared_expert_intermediate_size",
    "n_shared_experts", "moe_latent_size", "norm_topk_prob", "routed_scaling_factor", "n_group", "topk_group",
    "num_nextn_predict_layers", "mtp_hybrid_override_pattern", "mtp_layers_block_type", "initializer_range",
    "quantization_config", STABILITY,
)  # fmt: skip

_IGNORED = (
    "expand", "mamba_expand", "rope_theta", "rope_scaling", "rope_parameters", "partial_rotary_factor",
    "sliding_window", "attention_dropout", "hidden_dropout", "residual_in_fp32", "use_mamba_kernels", "use_cache",
    "num_logits_to_keep", "moe_shared_expert_overlap", "output_router_logits", "transformers_version",
    "_name_or_path", "output_attentions", "output_hidden_states", "return_dict", "is_encoder_decoder",
)  # fmt: skip
"""Fields without a meaning for what a model computes, in any reader of these folders."""

_CODE = ("auto_map", "trust_remote_code", "custom_pipelines")
"""Fields that ask a reader to run code from the folder."""

_KNOWN = {
    *_OTHER_NAMES, *(name for names in _OTHER_NAMES.values() for name in names), *_ONLY, *_KEPT, *_SHAPES, *_IGNORED,
    *_CODE,
}  # fmt: skip


@dataclass(frozen=True)
class PublicConfig:
    """A published configuration, understood.

    Attributes:
        config: what shapes the model.
        format: number format that the weights are stored in.
        mtp_blocks: prediction blocks that the file says the weights hold; published files hold one or none.
        carried: facts that do not shape the model and are kept: token ids, max_position_embeddings and the like.
        unknown: fields that nobody here knows.
        code: names of fields that ask a reader to run code from the folder, which is never done.
        quantization: how the file says that weights are quantized, not understood yet; None where they are not.
    """

    config: HybridConfig
    format: PlainFormat
    mtp_blocks: int
    carried: dict[str, Any]
    unknown: dict[str, Any]
    code: tuple[str, ...]
    quantization: dict[str, Any] | None


def open_public(path: Path) -> PublicConfig:
    """Understand a config.json file.

    Raises:
        CheckpointError: the file cannot be read.
        ConfigError: as `read_public`.
    """
    return read_public(read_config(path), str(path))


def read_public(fields: Mapping[str, Any], source: str) -> PublicConfig:
    """Understand the fields of a config.json in any dialect.

    Args:
        source: the file's name, for errors.
    Raises:
        ConfigError: a field is missing, of another type, out of bounds, in contradiction to another, or asks for what
            is not built here; with the values.
    """
    reader = _Reader(fields, source)
    _refuse_foreign(reader)
    pattern, mtp, blocks = _read_patterns(reader)
    letters = set(pattern + (mtp.pattern if mtp else ""))
    shapes: dict[str, Any] = {
        "vocab_size": reader.size("vocab_size", least=8),
        "width": reader.size("hidden_size"),
        "mamba": _read_mamba(reader) if "M" in letters else None,
        "attention": _read_attention(reader) if "*" in letters else None,
        "mlp": MlpConfig(hidden_width=reader.size("intermediate_size")) if "-" in letters else None,
        "moe": _read_moe(reader) if "E" in letters else None,
        "stability": _read_stability(reader),
        "norm_eps": reader.number("layer_norm_epsilon", 1e-5),
        "init_std": reader.number("initializer_range", 0.02),
    }
    try:
        config = HybridConfig(pattern=pattern, mtp=mtp, **shapes)
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}") from None
    _refuse_giant(config, source)
    return PublicConfig(
        config=config,
        format=_read_format(reader),
        mtp_blocks=blocks,
        carried=_read_carried(reader),
        unknown={name: value for name, value in fields.items() if name not in _KNOWN},
        code=tuple(name for name in _CODE if name in fields),
        quantization=_read_quantization(reader),
    )


def config_from_public(fields: Mapping[str, Any], source: str) -> HybridConfig:
    """The shapes alone; raises what `read_public` raises."""
    return read_public(fields, source).config


def public_config(
    config: HybridConfig, format: PlainFormat = "fp32", carried: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The fields of config.json, in the dialect that most readers understand: both spellings of the pattern.

    `time_step_limit` is left out, as every reader takes it for (0, infinity), which JSON cannot spell.

    Args:
        carried: facts of an earlier config.json to keep, as `read_public` gave them.
    """
    pattern = parse_pattern(config.pattern)
    dtype = next(name for name, known in _FORMATS.items() if known == format)
    fields: dict[str, Any] = {
        "architectures": [ARCHITECTURE],
        "model_type": PUBLIC_TYPE,
        "torch_dtype": dtype,
        "dtype": dtype,
        "vocab_size": config.vocab_size,
        "hidden_size": config.width,
        "num_hidden_layers": len(pattern),
        "hybrid_override_pattern": pattern,
        "layers_block_type": layer_names(pattern),
        "layer_norm_epsilon": config.norm_eps,
        "norm_eps": config.norm_eps,
        "initializer_range": config.init_std,
        **_ONLY,
        "mamba_ssm_cache_dtype": "float32",
        "residual_in_fp32": False,
        "rescale_prenorm_residual": True,
        "max_position_embeddings": 262144,  # nothing in the model depends on it
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    if config.attention is not None:
        a = config.attention
        fields |= {"num_attention_heads": a.heads, "num_key_value_heads": a.kv_heads, "head_dim": a.head_width}
    if config.mamba is not None:
        m = config.mamba
        fields |= {
            "mamba_num_heads": m.heads,
            "mamba_head_dim": m.head_width,
            "ssm_state_size": m.state_width,
            "n_groups": m.groups,
            "conv_kernel": m.conv_width,
            "chunk_size": m.chunk,
        }
    if config.mlp is not None:
        fields |= {"intermediate_size": config.mlp.hidden_width}
    if config.moe is not None:
        e = config.moe
        fields |= {
            "n_routed_experts": e.experts,
            "num_experts_per_tok": e.top_k,
            "moe_intermediate_size": e.expert_width,
            "moe_shared_expert_intermediate_size": e.shared_width,
            "n_shared_experts": 1,
            "moe_latent_size": e.latent_width,
            "norm_topk_prob": e.normalize_top_k,
            "routed_scaling_factor": e.routed_scaling,
            "n_group": e.expert_groups,
            "topk_group": e.top_groups,
        }
    if config.mtp is not None:
        fields |= {
            "num_nextn_predict_layers": 1,
            "mtp_hybrid_override_pattern": config.mtp.pattern,
            "mtp_layers_block_type": layer_names(config.mtp.pattern),
        }
    if replace(config.stability, z_loss=0.0) != Stability():  # which is of training only
        fields |= {"model_type": OWN_TYPE, "architectures": [OWN_ARCHITECTURE], STABILITY: to_data(config.stability)}
    return fields | dict(carried or {})


class _Reader:
    """Typed access to fields under any of their names; null is the same as absent."""

    def __init__(self, fields: Mapping[str, Any], source: str) -> None:
        self._fields, self.source = fields, source

    def fail(self, reason: str) -> NoReturn:
        raise ConfigError(f"{self.source}: {reason}")

    def find(self, name: str) -> tuple[str, Any]:
        """The name under which a field stands, and its value; None if it is not there."""
        found = [(key, self._fields[key]) for key in (name, *_OTHER_NAMES.get(name, ())) if self.has(key)]
        for other, value in found[1:]:
            self.same(found[0][0], found[0][1], other, value)
        return found[0] if found else (name, None)

    def has(self, name: str) -> bool:
        return self._fields.get(name) is not None

    def same(self, name: str, value: Any, other: str, other_value: Any) -> None:
        """Refuse two fields that should say the same and do not."""
        if value != other_value or isinstance(value, bool) != isinstance(other_value, bool):
            self.fail(f"{name} = {shown(value)} contradicts {other} = {shown(other_value)}")

    def whole(self, name: str, default: int | None = None, *, least: int, most: int) -> int:
        key, value = self.find(name)
        value = self._or_default(name, value, default)
        if type(value) is not int or not least <= value <= most:
            self.fail(f"{key}: {shown(value)} is not allowed; it must be a whole number from {least} to {most:,}")
        return value

    def size(self, name: str, default: int | None = None, *, least: int = 1) -> int:
        return self.whole(name, default, least=least, most=_MOST_SIZE)

    def number(self, name: str, default: float | None = None) -> float:
        """A finite number above 0."""
        key, value = self.find(name)
        value = self._or_default(name, value, default)
        if type(value) not in (int, float) or not 0 < value < math.inf:
            self.fail(f"{key}: {shown(value)} is not allowed; it must be a number above 0")
        return float(value)

    def flag(self, name: str, default: bool) -> bool:
        key, value = self.find(name)
        value = self._or_default(name, value, default)
        if type(value) is not bool:
            self.fail(f"{key}: {shown(value)} is not allowed; it must be true or false")
        return value

    def text(self, name: str) -> str | None:
        key, value = self.find(name)
        if value is not None and not isinstance(value, str):
            self.fail(f"{key}: {shown(value)} is not allowed; it must be a text")
        return value

    def texts(self, name: str) -> list[str] | None:
        key, value = self.find(name)
        if value is not None and not (isinstance(value, list) and all(isinstance(entry, str) for entry in value)):
            self.fail(f"{key}: {shown(value)} is not allowed; it must be a list of texts")
        return value

    def agreed(self, spellings: Mapping[str, str]) -> str | None:
        """The pattern that all fields which spell it agree on."""
        (name, pattern), *others = spellings.items() or [("", None)]
        for other, value in others:
            self.same(name, pattern, other, value)
        return pattern

    def _or_default(self, name: str, value: Any, default: Any) -> Any:
        if value is None and default is None:
            self.fail(f"the field '{name}' is required by the layer pattern")
        return default if value is None else value


def _refuse_foreign(reader: _Reader) -> None:
    """Models of other kinds, and what no model here does."""
    kind, architectures = reader.text("model_type"), reader.texts("architectures")
    if kind not in (None, *MODEL_TYPES):
        reader.fail(f"model_type {shown(kind)} is not read here, only '{PUBLIC_TYPE}'")
    if architectures and architectures not in ([ARCHITECTURE], [OWN_ARCHITECTURE]):
        reader.fail(f"architectures {shown(architectures)} are not read here, only ['{ARCHITECTURE}']")
    for name, only in _ONLY.items():
        key, value = reader.find(name)
        if value is not None and (value != only or type(value) is not type(only)):
            reader.fail(f"{key}: {shown(value)} is not built here, only {shown(only)}")
    key, limit = reader.find("time_step_limit")
    if limit is not None and not _is_unlimited(limit):
        reader.fail(f"{key}: {shown(limit)} would clamp dt, and no model here does; only [0, Infinity] is read")


def _is_unlimited(limit: Any) -> bool:
    if not isinstance(limit, list) or len(limit) != 2:
        return False
    low, high = limit
    return type(low) in (int, float) and low == 0 and high in (math.inf, {"__float__": "Infinity"})


def _read_patterns(reader: _Reader) -> tuple[str, MtpConfig | None, int]:
    """The layers, the prediction block, and how many blocks the file says its weights hold."""
    text, names = reader.text("hybrid_override_pattern"), reader.texts("layers_block_type")
    mtp_text, mtp_names = reader.text("mtp_hybrid_override_pattern"), reader.texts("mtp_layers_block_type")
    for spelling in (text, names, mtp_text, mtp_names):
        if spelling is not None and len(spelling) > 2 * _MOST_LAYERS:
            reader.fail(f"a layer pattern of {len(spelling):,} entries; at most {_MOST_LAYERS:,} layers are read here")
    main: dict[str, str] = {}
    mtp: dict[str, str] = {}
    depths = 0
    if text is not None:
        name = "hybrid_override_pattern"
        main[name], block, depths = split_depths(text, f"{reader.source}: {name}")
        if block is not None:
            mtp[name] = block
    for into, name, spelled in (
        (main, "layers_block_type", names),
        (mtp, "mtp_hybrid_override_pattern", mtp_text),
        (mtp, "mtp_layers_block_type", mtp_names),
    ):
        if spelled is not None:
            into[name] = parse_pattern(spelled, f"{reader.source}: {name}")
    pattern = reader.agreed(main)
    if pattern is None:
        reader.fail("the field 'hybrid_override_pattern' (or 'layers_block_type') is required")
    if len(pattern) > _MOST_LAYERS:
        reader.fail(f"{len(pattern):,} layers; at most {_MOST_LAYERS:,} are read here")
    layers = reader.size("num_hidden_layers", len(pattern))
    if layers != len(pattern):
        reader.fail(f"num_hidden_layers = {layers} contradicts the pattern '{pattern}' of {len(pattern)} layers")
    blocks = reader.whole("num_nextn_predict_layers", 1 if depths else 0, least=0, most=64)
    if depths and not blocks:
        reader.fail(f"num_nextn_predict_layers = 0 contradicts the prediction block in the pattern {shown(text)}")
    if not blocks:
        return pattern, None, 0
    return pattern, MtpConfig(pattern=reader.agreed(mtp) or "*E", depth=depths or MtpConfig.depth), blocks


def _read_mamba(reader: _Reader) -> MambaConfig:
    return MambaConfig(
        heads=reader.size("mamba_num_heads"),
        head_width=reader.size("mamba_head_dim"),
        state_width=reader.size("ssm_state_size"),
        groups=reader.size("n_groups"),
        conv_width=reader.size("conv_kernel", 4, least=2),
        chunk=reader.size("chunk_size", 128),
    )


def _read_attention(reader: _Reader) -> AttentionConfig:
    return AttentionConfig(
        heads=reader.size("num_attention_heads"),
        kv_heads=reader.size("num_key_value_heads"),
        head_width=reader.size("head_dim", 128),
    )


def _read_moe(reader: _Reader) -> MoeConfig:
    if (shared := reader.size("n_shared_experts", 1)) != 1:
        # Readers disagree on whether the shared width is then multiplied; published files write 1 and the whole width.
        reader.fail(f"n_shared_experts: {shared} is not built here, only 1 of the whole width")
    return MoeConfig(
        experts=reader.size("n_routed_experts"),
        top_k=reader.size("num_experts_per_tok"),
        expert_width=reader.size("moe_intermediate_size"),
        shared_width=reader.size("moe_shared_expert_intermediate_size"),
        latent_width=reader.size("moe_latent_size") if reader.has("moe_latent_size") else None,
        routed_scaling=reader.number("routed_scaling_factor", 1.0),
        normalize_top_k=reader.flag("norm_topk_prob", True),
        expert_groups=reader.size("n_group", 1),
        top_groups=reader.size("topk_group", 1),
    )


def _read_stability(reader: _Reader) -> Stability:
    """Methods that no published model uses, under a field that no other reader knows."""
    _, methods = reader.find(STABILITY)
    return Stability() if methods is None else parse(Stability, methods, f"{reader.source}: {STABILITY}")


def _read_format(reader: _Reader) -> PlainFormat:
    name = reader.text("torch_dtype") or "float32"
    if name not in _FORMATS:
        reader.fail(f"torch_dtype {shown(name)} is not known here; known: {', '.join(_FORMATS)}")
    return _FORMATS[name]


def _read_quantization(reader: _Reader) -> dict[str, Any] | None:
    _, fields = reader.find("quantization_config")
    if fields is not None and not isinstance(fields, dict):
        reader.fail(f"quantization_config: {shown(fields)} is not allowed; it must be an object")
    return fields


def _read_carried(reader: _Reader) -> dict[str, Any]:
    carried: dict[str, Any] = {}
    for name in _KEPT_IDS:
        if reader.has(name):
            _, ids = reader.find(name)
            for index in ids if isinstance(ids, list) else [ids]:
                if type(index) is not int or not -1 <= index < _MOST_SIZE:
                    reader.fail(f"{name}: {shown(ids)} is not allowed; it must be a token id or a list of them")
            carried[name] = ids
    for name in _KEPT_STEPS:
        if reader.find(name)[1] is not None:
            carried[name] = reader.number(name)
    if reader.has("max_position_embeddings"):
        carried["max_position_embeddings"] = reader.whole("max_position_embeddings", least=1, most=1 << 40)
    if reader.has("mamba_ssm_cache_dtype"):
        carried["mamba_ssm_cache_dtype"] = reader.text("mamba_ssm_cache_dtype")
    if reader.has("rescale_prenorm_residual"):
        carried["rescale_prenorm_residual"] = reader.flag("rescale_prenorm_residual", True)
    return carried


def _refuse_giant(config: HybridConfig, source: str) -> None:
    """Sizes whose products no tensor could have; each alone is within its bounds."""
    cost = budget(config)
    if (count := cost.parameters + cost.mtp_parameters) > _MOST_PARAMETERS:
        raise ConfigError(f"{source}: {count:,} parameters; at most {_MOST_PARAMETERS:,} are read here")
    if cost.tensors > MOST_TENSORS:
        raise ConfigError(f"{source}: {cost.tensors:,} tensors; at most {MOST_TENSORS:,} are read here")
