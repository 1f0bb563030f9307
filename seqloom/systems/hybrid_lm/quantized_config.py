"""How a quantized folder says what it is: `quantization_config` in config.json, and hf_quant_config.json beside it.

ModelOpt folders have either or both, compressed-tensors the first. What nobody here reads (another method, algorithm or
strategy) is refused: read as plain numbers, FP8 codes without their scales load in silence and compute nonsense.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from seqloom.core.checkpoint.json_file import read_json, shown
from seqloom.core.errors import CheckpointError
from seqloom.quantize.config import Layout, QuantFormat

BESIDE = "hf_quant_config.json"

MODELOPT: Final = "modelopt"
COMPRESSED: Final = "compressed-tensors"
_ALGORITHMS: dict[QuantFormat, str] = {"fp8": "FP8", "nvfp4": "NVFP4", "nvfp4_w4a16": "W4A16_NVFP4"}
_MIXED = "MIXED_PRECISION"
_FORMAT_OF: dict[str, QuantFormat] = {name: format for format, name in _ALGORITHMS.items()}
_FILE_FORMATS: dict[QuantFormat, str] = {
    "fp8": "float-quantized",
    "nvfp4": "nvfp4-pack-quantized",
    "nvfp4_w4a16": "nvfp4-pack-quantized",
}
_MIXED_FILE = "mixed-precision"
_MOST_PATTERNS = 4096


@dataclass(frozen=True)
class Declared:
    """What a folder says of its quantized weights.

    Attributes:
        layout: whose names the tensors have.
        formats: that occur.
        by_module: the format of every quantized layer, where the folder lists them.
        excluded: shell patterns over layers that are not quantized.
        fp8_cache: keys and values are to be kept in FP8.
    """

    layout: Layout
    formats: frozenset[QuantFormat]
    by_module: Mapping[str, QuantFormat] | None
    excluded: tuple[str, ...]
    fp8_cache: bool

    @property
    def inverse(self) -> bool:
        """Whether scales of whole FP4 matrices are stored as reciprocals."""
        return self.layout == COMPRESSED

    def format_of(self, module: str, stored: QuantFormat, file: str) -> QuantFormat:
        """The format of a layer whose codes are those of FP8 or NVFP4.

        Raises:
            CheckpointError: the folder says otherwise.
        """
        family: set[QuantFormat] = {"fp8"} if stored == "fp8" else {"nvfp4", "nvfp4_w4a16"}
        if any(fnmatchcase(module, pattern) for pattern in self.excluded):
            raise CheckpointError(f"{file}: {module} is stored in {stored}, but the configuration excludes it")
        if self.by_module is not None:
            said = self.by_module.get(_canonical(module))
            if said not in family:
                raise CheckpointError(
                    f"{file}: {module} is stored in {stored}, the configuration says {said or 'bf16'}"
                )
            return said
        possible = sorted(family & self.formats)
        if not possible:
            names = " or ".join(sorted(self.formats))
            raise CheckpointError(f"{file}: {module} is stored in {stored}, the configuration says {names}")
        return possible[-1]  # with both, scales of inputs are not insisted on


def read_declared(folder: Path, quantization: Mapping[str, Any] | None) -> Declared | None:
    """What a folder declares; None where nothing is quantized.

    Args:
        quantization: `quantization_config` of its config.json.
    Raises:
        CheckpointError: a method, algorithm or field is not read here, or the two files contradict each other.
    """
    source = f"{folder / 'config.json'}: quantization_config"
    beside = read_json(folder / BESIDE) if (folder / BESIDE).exists() else None
    if quantization is not None and (method := quantization.get("quant_method")) != MODELOPT:
        if method != COMPRESSED:
            raise CheckpointError(
                f"{source}: quant_method {shown(method)} is not read here, only '{MODELOPT}' and '{COMPRESSED}'"
            )
        if beside is not None:
            raise CheckpointError(f"{folder / BESIDE}: is of {MODELOPT}, but config.json says {COMPRESSED}")
        return _read_compressed(quantization, source)
    if beside is None:
        return None if quantization is None else _read_modelopt(quantization, "ignore", source)
    inner = beside.get("quantization")
    if not isinstance(inner, dict):
        raise CheckpointError(f"{folder / BESIDE}: has no 'quantization'")
    found = _read_modelopt(inner, "exclude_modules", f"{folder / BESIDE}: quantization")
    if quantization is not None:
        other = _read_modelopt(quantization, "ignore", source)
        if replace(other, excluded=()) != replace(found, excluded=()):
            raise CheckpointError(f"{folder / BESIDE}: contradicts quantization_config in config.json")
    return found


def modelopt_config(
    formats: Mapping[str, QuantFormat], kept: Sequence[str], kv_cache: bool
) -> tuple[dict[str, Any], dict[str, Any]]:
    """`quantization_config`, and the content of hf_quant_config.json.

    Args:
        formats: of every quantized layer by its module's name on disk.
        kept: names or shell patterns of the others.
    """
    used = sorted(set(formats.values()))
    producer = {"name": "seqloom", "version": version("seqloom")}
    algorithm = _ALGORITHMS[used[0]] if len(used) == 1 else _MIXED
    fields: dict[str, Any] = {"quant_algo": algorithm}
    if len(used) > 1:
        fields["quantized_layers"] = {module: _layer_fields(format) for module, format in formats.items()}
    groups: dict[str, dict[str, Any]] = {}
    for number, format in enumerate(used):
        targets = ["Linear"] if len(used) == 1 else [name for name, each in formats.items() if each == format]
        numbers: dict[str, Any] = {"dynamic": False, "num_bits": 8 if format == "fp8" else 4, "type": "float"}
        if format != "fp8":
            numbers["group_size"] = 16
        groups[f"group_{number}"] = {"weights": numbers, "targets": targets}
        if format != "nvfp4_w4a16":
            groups[f"group_{number}"]["input_activations"] = dict(numbers)
    inside = {"quant_method": MODELOPT, "producer": producer, **fields, "ignore": list(kept), "config_groups": groups}
    if kv_cache:
        inside["kv_cache_scheme"] = {"dynamic": False, "num_bits": 8, "type": "float"}
    beside: dict[str, Any] = {"kv_cache_quant_algo": "FP8" if kv_cache else None, "exclude_modules": list(kept)}
    if used != ["fp8"]:
        beside["group_size"] = 16
    return inside, {"producer": producer, "quantization": {**fields, **beside}}


def compressed_config(format: QuantFormat, kept: Sequence[str]) -> dict[str, Any]:
    """`quantization_config` for transformers, which decodes all layers by one format and names modules differently.

    Args:
        kept: names or shell patterns of the layers that are not quantized.
    """
    numbers: dict[str, Any] = {"type": "float", "symmetric": True, "dynamic": False}
    if format == "fp8":
        numbers |= {"num_bits": 8, "strategy": "tensor"}
        inputs: dict[str, Any] | None = dict(numbers)
    else:
        numbers |= {"num_bits": 4, "strategy": "tensor_group", "group_size": 16}
        numbers |= {"scale_dtype": "torch.float8_e4m3fn", "zp_dtype": "torch.float8_e4m3fn"}
        inputs = numbers | {"dynamic": "local", "observer": "static_minmax"} if format == "nvfp4" else None
    group = {"targets": ["Linear"], "weights": numbers, "input_activations": inputs, "output_activations": None}
    return {
        "quant_method": COMPRESSED,
        "format": _FILE_FORMATS[format],
        "quantization_status": "compressed",
        "config_groups": {"group_0": group},
        "ignore": [_pattern(name) if "." in name else name for name in kept],
        "kv_cache_scheme": None,
    }


def _pattern(module: str) -> str:
    """A module's name, or shell pattern, without the first part, which transformers names otherwise."""
    tail = module.split(".", 1)[1] if module.startswith("backbone.") else module
    return "re:.*" + re.escape(tail).replace(r"\*", ".*") + "$"


def _layer_fields(format: QuantFormat) -> dict[str, Any]:
    return {"quant_algo": _ALGORITHMS[format], **({} if format == "fp8" else {"group_size": 16})}


def _canonical(module: str) -> str:
    return re.sub(r"^model\.", "backbone.", module)


def _read_modelopt(fields: Mapping[str, Any], excluded: str, source: str) -> Declared:
    patterns = fields.get(excluded) or []
    if not _are_texts(patterns) or len(patterns) > _MOST_PATTERNS:
        raise CheckpointError(f"{source}: {excluded} must be a list of at most {_MOST_PATTERNS:,} names")
    algorithm, cache = fields.get("quant_algo"), _has_fp8_cache(fields, source)
    if algorithm != _MIXED:
        return Declared(MODELOPT, frozenset({_algorithm(algorithm, source)}), None, tuple(patterns), cache)
    layers = fields.get("quantized_layers")
    if not isinstance(layers, dict) or not layers or not all(isinstance(each, dict) for each in layers.values()):
        raise CheckpointError(f"{source}: {_MIXED} needs quantized_layers, with a quant_algo for each")
    by_module = {_canonical(name): _algorithm(each.get("quant_algo"), source) for name, each in layers.items()}
    return Declared(MODELOPT, frozenset(by_module.values()), by_module, tuple(patterns), cache)


def _algorithm(name: Any, source: str) -> QuantFormat:
    if not isinstance(name, str) or name not in _FORMAT_OF:
        raise CheckpointError(
            f"{source}: quant_algo {shown(name)} is not read here; read are {', '.join(_FORMAT_OF)} and {_MIXED}"
        )
    return _FORMAT_OF[name]


def _read_compressed(fields: Mapping[str, Any], source: str) -> Declared:
    format, groups, ignored = fields.get("format"), fields.get("config_groups"), fields.get("ignore") or []
    if format not in (*_FILE_FORMATS.values(), _MIXED_FILE):
        raise CheckpointError(
            f"{source}: format {shown(format)} is not read here; read are "
            f"{', '.join(dict.fromkeys(_FILE_FORMATS.values()))} and {_MIXED_FILE}"
        )
    if (status := fields.get("quantization_status", "compressed")) != "compressed":
        raise CheckpointError(f"{source}: quantization_status {shown(status)} is not read here, only 'compressed'")
    if not isinstance(groups, dict) or not groups:
        raise CheckpointError(f"{source}: has no config_groups")
    formats = frozenset(_group_format(group, f"{source}: {shown(name)}") for name, group in groups.items())
    if not _are_texts(ignored):
        raise CheckpointError(f"{source}: ignore must be a list of names")
    # Patterns ("re:...") are expressions of a foreign file, and are not run.
    plain = tuple(name for name in ignored if not name.startswith("re:"))
    return Declared(COMPRESSED, formats, None, plain[:_MOST_PATTERNS], _has_fp8_cache(fields, source))


def _group_format(group: Any, source: str) -> QuantFormat:
    weights = group.get("weights") if isinstance(group, dict) else None
    known: dict[str, Any] = weights if isinstance(weights, dict) else {}
    facts = tuple(known.get(name) for name in ("type", "num_bits", "strategy"))
    if facts == ("float", 8, "tensor"):
        return "fp8"
    if facts == ("float", 4, "tensor_group") and known.get("group_size") == 16:
        return "nvfp4" if group.get("input_activations") is not None else "nvfp4_w4a16"
    raise CheckpointError(
        f"{source}: weights {shown(weights)} are not read here; read are FP8 with one scale per tensor and NVFP4 "
        "(tensor_group of 16)"
    )


def _has_fp8_cache(fields: Mapping[str, Any], source: str) -> bool:
    """Whether keys and values are in FP8, as either file says it."""
    algorithm, scheme = fields.get("kv_cache_quant_algo"), fields.get("kv_cache_scheme")
    eight = isinstance(scheme, dict) and (scheme.get("type"), scheme.get("num_bits")) == ("float", 8)
    if algorithm not in (None, "FP8") or (scheme is not None and not eight):
        raise CheckpointError(f"{source}: a cache in {shown(algorithm or scheme)} is not read here, only in FP8")
    return algorithm is not None or eight


def _are_texts(values: Any) -> bool:
    return isinstance(values, list) and all(isinstance(value, str) for value in values)
