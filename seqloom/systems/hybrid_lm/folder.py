"""Model folders in the public layout: config.json and safetensors that other tools load as they are.

Names in memory are the names on disk, with one exception: experts are stacked in memory ([E, F, I]) and one tensor
each on disk. Files may be one `model.safetensors` or shards with an index. `mtp.*` tensors are kept; router biases,
A_log, D and dt_bias stay FP32 whatever the rest is stored in.
Paper: Nemotron-H, Nano 2, Nemotron 3; layout as in the published checkpoints.
"""

import contextlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from seqloom.core.checkpoint.tensors import save_tensors
from seqloom.core.errors import CheckpointError, ConfigError
from seqloom.nn.pattern import layer_names, parse_pattern
from seqloom.numerics.precision import Format, PrecisionConfig, apply_precision
from seqloom.systems.hybrid_lm.config import (
    MODEL_TYPE,
    AttentionConfig,
    HybridConfig,
    MambaConfig,
    MlpConfig,
    MoeConfig,
    MtpConfig,
)
from seqloom.systems.hybrid_lm.model import HybridLM

WEIGHTS, INDEX, CONFIG = "model.safetensors", "model.safetensors.index.json", "config.json"

_FP32_ONLY = re.compile(r"\.(A_log|D|dt_bias|e_score_correction_bias)$")
_STACKED = re.compile(r"^(.*\.mixer\.experts)\.(up_proj|down_proj)$")
_FORMATS: dict[str, Format] = {"float32": "fp32", "bfloat16": "bf16"}


def write_model(model: HybridLM, folder: Path) -> None:
    """Write config.json and model.safetensors, FP32 masters as they are."""
    (folder / CONFIG).write_text(json.dumps(public_config(model.config), indent=2) + "\n", encoding="utf-8")
    save_tensors(folder / WEIGHTS, dict(disk_tensors(model)))


def read_model(folder: Path) -> HybridLM:
    """Open any folder in the public layout, in the number format it is stored in.

    Raises:
        CheckpointError: a file is missing or damaged, or a tensor is missing, unknown or misshapen (each is named).
        ConfigError: the configuration contradicts itself.
    """
    fields = _read_json(folder / CONFIG)
    with torch.device("meta"):
        model = HybridLM(config_from_public(fields, str(folder / CONFIG)))
    stored = str(fields.get("torch_dtype") or fields.get("dtype") or "float32")
    if stored not in _FORMATS:
        known = ", ".join(_FORMATS)
        raise CheckpointError(f"{folder / CONFIG}: torch_dtype '{stored}' is not known here; known: {known}")
    apply_precision(model, PrecisionConfig(activations=_FORMATS[stored]))
    if not any((folder / name).exists() for name in (WEIGHTS, INDEX)):
        raise CheckpointError(f"{folder}: holds neither {WEIGHTS} nor {INDEX}")
    _fill(model, folder, replace=True)
    for moe in model.expert_layers():
        moe.gate.load = torch.zeros(moe.gate.experts, dtype=torch.int64)
    return model


def read_weights(model: HybridLM, folder: Path) -> None:
    """Copy the weights of a folder into a model of the same shapes, bit for bit."""
    _fill(model, folder, replace=False)


def public_config(config: HybridConfig) -> dict[str, Any]:
    """The fields of config.json that transformers and vLLM read, with both spellings of the pattern."""
    pattern = parse_pattern(config.pattern)
    fields: dict[str, Any] = {
        "architectures": ["NemotronHForCausalLM"],
        "model_type": MODEL_TYPE,
        "torch_dtype": "float32",
        "vocab_size": config.vocab_size,
        "hidden_size": config.width,
        "num_hidden_layers": len(pattern),
        "hybrid_override_pattern": pattern,
        "layers_block_type": layer_names(pattern),
        "layer_norm_epsilon": config.norm_eps,
        "norm_eps": config.norm_eps,
        "initializer_range": config.init_std,
        "tie_word_embeddings": False,
        "use_bias": False,
        "mlp_bias": False,
        "attention_bias": False,
        "mamba_proj_bias": False,
        "use_conv_bias": True,
        "mlp_hidden_act": "relu2",
        "mamba_hidden_act": "silu",
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
    return fields


def config_from_public(fields: dict[str, Any], source: str) -> HybridConfig:
    """Read the shapes from public config fields, in either spelling of the pattern and with old field names.

    Raises:
        ConfigError: no pattern, or a field that a layer kind of the pattern needs is missing.
    """

    def need(*names: str) -> Any:
        for name in names:
            if fields.get(name) is not None:
                return fields[name]
        raise ConfigError(f"{source}: the field '{names[0]}' is required by the layer pattern")

    def maybe(default: Any, *names: str) -> Any:
        return next((fields[name] for name in names if fields.get(name) is not None), default)

    pattern = parse_pattern(need("hybrid_override_pattern", "layers_block_type"), source)
    mtp_pattern = None
    if maybe(0, "num_nextn_predict_layers"):
        mtp_pattern = parse_pattern(
            maybe("*E", "mtp_hybrid_override_pattern", "mtp_layers_block_type"), f"{source}: mtp pattern"
        )
    letters = set(pattern + (mtp_pattern or ""))
    return HybridConfig(
        pattern=pattern,
        vocab_size=need("vocab_size"),
        width=need("hidden_size"),
        mamba=MambaConfig(
            heads=need("mamba_num_heads"),
            head_width=need("mamba_head_dim"),
            state_width=need("ssm_state_size"),
            groups=need("n_groups", "mamba_n_groups"),
            conv_width=maybe(4, "conv_kernel", "mamba_d_conv"),
            chunk=maybe(128, "chunk_size", "mamba_chunk_size"),
        )
        if "M" in letters
        else None,
        attention=AttentionConfig(
            heads=need("num_attention_heads"),
            kv_heads=need("num_key_value_heads"),
            head_width=maybe(128, "head_dim", "attention_head_dim"),
        )
        if "*" in letters
        else None,
        mlp=MlpConfig(hidden_width=need("intermediate_size")) if "-" in letters else None,
        moe=MoeConfig(
            experts=need("n_routed_experts"),
            top_k=need("num_experts_per_tok"),
            expert_width=need("moe_intermediate_size"),
            shared_width=need("moe_shared_expert_intermediate_size"),
            latent_width=maybe(None, "moe_latent_size"),
            routed_scaling=maybe(1.0, "routed_scaling_factor"),
            normalize_top_k=maybe(True, "norm_topk_prob"),
            expert_groups=maybe(1, "n_group"),
            top_groups=maybe(1, "topk_group"),
        )
        if "E" in letters
        else None,
        mtp=MtpConfig(pattern=mtp_pattern) if mtp_pattern else None,
        norm_eps=maybe(1e-5, "layer_norm_epsilon", "norm_eps"),
        init_std=maybe(0.02, "initializer_range"),
    )


def disk_tensors(model: HybridLM) -> Iterator[tuple[str, Tensor]]:
    """Every tensor under its public name; stacked experts become one tensor each."""
    for name, tensor in model.state_dict().items():
        stacked = _STACKED.match(name)
        if stacked is None:
            yield name, tensor
            continue
        for expert, matrix in enumerate(tensor):
            yield f"{stacked[1]}.{expert}.{stacked[2]}.weight", matrix


def _fill(model: HybridLM, folder: Path, replace: bool) -> None:
    """Fill every tensor of the model from the folder; `replace` takes the file's number format (for meta models)."""
    homes = _tensor_files(folder)
    wanted = {name: tuple(tensor.shape) for name, tensor in disk_tensors(model)}
    missing, unknown = sorted(wanted.keys() - homes.keys()), sorted(homes.keys() - wanted.keys())
    if missing or unknown:
        told = [f"missing: {', '.join(missing[:5])}"] if missing else []
        told += [f"unknown: {', '.join(unknown[:5])}"] if unknown else []
        raise CheckpointError(f"{folder}: {len(missing)} tensors missing, {len(unknown)} unknown; {'; '.join(told)}")
    filled: dict[str, Tensor] = {}
    with _Files(folder) as files:
        for name, tensor in model.state_dict().items():
            stacked = _STACKED.match(name)
            if stacked is None:
                filled[name] = files.read(name, homes[name], wanted[name]).clone()  # not mapped to a file that may go
            else:
                parts = [f"{stacked[1]}.{expert}.{stacked[2]}.weight" for expert in range(tensor.shape[0])]
                filled[name] = torch.stack([files.read(part, homes[part], wanted[part]) for part in parts])
            if _FP32_ONLY.search(name):
                filled[name] = filled[name].float()
    model.load_state_dict(filled, assign=replace)
    for parameter in model.parameters():
        parameter.requires_grad_(True)


class _Files:
    """The safetensors files of a folder, each opened once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._open: dict[str, Any] = {}

    def __enter__(self) -> "_Files":
        return self

    def __exit__(self, *error: object) -> None:
        self._open.clear()

    def read(self, name: str, file: str, shape: tuple[int, ...]) -> Tensor:
        with _named(self._folder / file):
            if file not in self._open:
                self._open[file] = safe_open(self._folder / file, framework="pt")
            tensor: Tensor = self._open[file].get_tensor(name)
        if tuple(tensor.shape) != shape:
            raise CheckpointError(
                f"{self._folder / file}: tensor '{name}' has shape {tuple(tensor.shape)}, "
                f"the configuration asks for {shape}"
            )
        return tensor


def _tensor_files(folder: Path) -> dict[str, str]:
    """Tensor name -> file name, from the index or from the single file's own header."""
    index = folder / INDEX
    if index.exists() and not (folder / WEIGHTS).exists():
        homes = _read_json(index).get("weight_map")
        if not isinstance(homes, dict):
            raise CheckpointError(f"{index}: has no 'weight_map'")
        for file in set(homes.values()):
            if Path(file).name != file or not (folder / file).is_file():
                raise CheckpointError(f"{index}: names the file '{file}', which is not in this folder")
        return homes
    with _named(folder / WEIGHTS), safe_open(folder / WEIGHTS, framework="pt") as file:
        return dict.fromkeys(file.keys(), WEIGHTS)


@contextlib.contextmanager
def _named(path: Path) -> Iterator[None]:
    """Whatever is wrong with a weights file is told with its name."""
    try:
        yield
    except SafetensorError as error:
        raise CheckpointError(f"{path}: damaged or not a safetensors file: {error}") from error
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise CheckpointError(f"{path}: not JSON: {error}") from error
    if not isinstance(fields, dict):
        raise CheckpointError(f"{path}: expected an object, found {type(fields).__name__}")
    return fields
