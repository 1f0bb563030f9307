"""Adapters on disk, in the layout of PEFT, both ways; and adapters folded into the model they were trained on.

    adapter_config.json             which model they belong to, rank, scale, which projections
    adapter_model.safetensors       base_model.model.<module as transformers names it>.lora_A.weight [R, in]
                                                                                       lora_B.weight [out, R]

Factors of stacked experts are flat there: A [E·R, in] with the expert first, B [out, R·E] with the expert last. PEFT
wraps the stacks one around the other, so with both adapted `experts` holds the down and `experts.base_layer` the up
factors; adapters stored per expert (`experts.7.up_proj`) are read too. What PEFT 0.21 does not take of ours: Mamba's
`out_proj`, which it refuses by name for this model type, and the prediction block, which transformers leaves out.

Folding adds c B A in FP32 and rounds once to the number format of the base.
Paper: LoRA, arXiv 2106.09685.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from seqloom.core.checkpoint import manifest
from seqloom.core.checkpoint.identity import NAME as BASE
from seqloom.core.checkpoint.identity import differing, identity, read_identity
from seqloom.core.checkpoint.json_file import read_json, shown
from seqloom.core.checkpoint.tensor_folder import Planned, TensorFolder
from seqloom.core.checkpoint.tensors import save_tensors
from seqloom.core.errors import CheckpointError
from seqloom.core.progress import Progress
from seqloom.core.rooms import ADAPTER, is_adapter
from seqloom.nn.lora import AdaptedExperts, AdaptedLinear, Projection, projections
from seqloom.systems.hybrid_lm import folder as model_folder
from seqloom.systems.hybrid_lm.config import HybridConfig
from seqloom.systems.hybrid_lm.convert import write_streamed
from seqloom.systems.hybrid_lm.disk_weights import disk_weights
from seqloom.systems.hybrid_lm.model import HybridLM
from seqloom.systems.hybrid_lm.public_config import public_config

STEM = "adapter_model"
STACKS = ("up_proj", "down_proj")
PIECE = 1 << 24
"""Numbers that are folded at once."""

_PREFIX = "base_model.model."
_EXPERT = re.compile(r"(.*\.experts)\.(\d{1,6})\.(up_proj|down_proj)")
_MEANINGLESS = {
    *("auto_mapping", "base_model_name_or_path", "exclude_modules", "inference_mode", "layers_pattern"),
    *("layers_to_transform", "lora_alpha", "lora_dropout", "megatron_core", "peft_type", "peft_version"),
    *("qalora_group_size", "r", "revision", "runtime_config", "target_modules", "target_parameters", "task_type"),
    *("use_rslora",),
}
"""Fields that are read, or that say nothing about what the stored factors do; any other must be switched off."""
_ALLOWED = {"bias": ("none",), "init_lora_weights": (True, False, "gaussian", "orthogonal", "eva")}


class Settings(NamedTuple):
    """What an adapter_config.json says."""

    base: str
    rank: int
    scale: float
    parameters: tuple[str, ...]


class Pair(NamedTuple):
    """The factors of one projection; B A is [out, in], or a stack of such."""

    a: Tensor
    b: Tensor


def write_adapter(model: HybridLM, folder: Path) -> None:
    """Write config.json of the base, and the adapters of a model."""
    attached = model.adapter
    assert attached is not None
    lora, public = attached.lora, attached.public
    fields = public_config(public.config, public.format, public.carried)
    (folder / "config.json").write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")
    settings = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": attached.base,
        "r": lora.rank,
        "lora_alpha": int(lora.alpha) if lora.alpha == int(lora.alpha) else lora.alpha,
        "use_rslora": lora.rank_stabilised,
        "lora_dropout": lora.dropout,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "target_modules": _targets(model, routed=False),
        "target_parameters": _targets(model, routed=True) or None,
    }
    (folder / ADAPTER).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    save_tensors(folder / f"{STEM}.safetensors", dict(_disk_tensors(model)))


def read_trained(model: HybridLM, folder: Path) -> None:
    """Put stored factors into the adapters of a model that has the same ones, bit for bit.

    Raises:
        CheckpointError: a factor is missing, unknown or misshapen.
    """
    stored = read_pairs(folder, model.config)
    modules = _adapted(model)
    if missing := [*(modules.keys() - stored.keys()), *(stored.keys() - modules.keys())]:
        raise CheckpointError(f"{folder}: not the adapters of this run: '{missing[0]}' is not in both")
    with torch.no_grad():
        for name, pair in modules.items():
            for mine, theirs in zip(pair, stored[name], strict=True):
                mine.copy_(theirs)


def read_model(folder: Path) -> HybridLM:
    """Open an adapter together with its base model, folded into the weights.

    Raises:
        CheckpointError: the adapter or its base is missing, damaged or of a kind that is not supported.
    """
    _verify(folder)
    model = model_folder.read_model(base_folder(folder))
    pairs, scale = read_pairs(folder, model.config), read_settings(folder).scale
    with torch.no_grad():
        for name, pair in pairs.items():
            for weight, one in _matrices(model, name, pair):
                for rows in _pieces(*weight.shape):
                    weight[rows] = _folded(weight[rows], one, scale, rows)
    return model


def merge(folder: Path, into: Path, base: Path | None = None, progress: Progress | None = None) -> None:
    """Fold an adapter into its base and write a model folder, tensor by tensor.

    Args:
        into: must not exist.
        base: the base, where it is no longer at the path that the adapter names.
    Raises:
        CheckpointError: as `read_model`, or `into` exists or cannot be written.
    """
    _verify(folder)
    weights = disk_weights(base_folder(folder, base))
    public, scale = weights.public, read_settings(folder).scale
    pairs = _by_matrix(read_pairs(folder, public.config))

    def planned(name: str) -> Planned:
        pair = pairs.get(name.removesuffix(".weight"))
        if pair is None:
            return weights.planned(name)
        shape = weights.entries[name].shape

        def parts() -> Iterator[Tensor]:
            return (_folded(weights.read(name, rows), pair, scale, rows) for rows in _pieces(*shape))

        return Planned(name, weights.dtype(name), shape, parts)

    fields = public_config(public.config, public.format, public.carried)
    own_tokenizer = (folder / "tokenizer.json").exists()
    write_streamed(
        into,
        fields,
        [planned(name) for name in weights.entries],
        carry_from=folder if own_tokenizer else weights.folder,
        progress=progress,
    )


def base_folder(folder: Path, elsewhere: Path | None = None) -> Path:
    """The model that an adapter was trained on; of a run its newest checkpoint.

    Args:
        elsewhere: where the base is now, if no longer at the path that the adapter names.
    Raises:
        CheckpointError: it is not there, is another one than it was, or is itself an adapter.
    """
    named = elsewhere or Path(read_settings(folder).base)
    if not named.is_dir():
        raise CheckpointError(
            f"{folder / ADAPTER}: sits on the model {named}, and there is no such folder; put the model (or a link to "
            "it) there, or merge the adapter with it: seqloom merge ADAPTER --base MODEL --out FOLDER"
        )
    base = (named / "latest").resolve() if (named / "latest").is_symlink() else named
    if is_adapter(base):
        raise CheckpointError(f"{named}: the base of {folder} is itself an adapter; merge that one first")
    kept = read_identity(folder)
    if kept is not None and (changes := differing(kept, identity(base))):
        raise CheckpointError(f"{named}: not the model that {folder} was trained on: {', '.join(changes)}")
    return base


def _verify(folder: Path) -> None:
    """What a run here wrote must be as it was written."""
    files = (ADAPTER, f"{STEM}.safetensors", BASE)
    if (folder / manifest.NAME).exists() and (problems := manifest.verify(folder, lambda name: name in files)):
        raise CheckpointError(f"{folder}: not as it was written: {', '.join(problems)}")


def read_settings(folder: Path) -> Settings:
    """Read adapter_config.json.

    Raises:
        CheckpointError: it is damaged, or asks for something that is not supported; the field is named.
    """
    path = folder / ADAPTER
    fields = read_json(path)
    if fields.get("peft_type") != "LORA":
        raise CheckpointError(f"{path}: peft_type {shown(fields.get('peft_type'))} is not supported; known: 'LORA'")
    for name, value in fields.items():
        if name in _ALLOWED:
            if value not in _ALLOWED[name]:
                raise CheckpointError(f"{path}: {name} = {shown(value)} is not supported; allowed: {_ALLOWED[name]}")
        elif name not in _MEANINGLESS and value not in (None, False, [], {}):
            raise CheckpointError(f"{path}: {name} = {shown(value)} is not supported; only adapters without it are")
    rank, alpha, base = fields.get("r"), fields.get("lora_alpha"), fields.get("base_model_name_or_path")
    stable, parameters = fields.get("use_rslora") or False, fields.get("target_parameters") or []
    if type(rank) is not int or rank < 1:
        raise CheckpointError(f"{path}: r = {shown(rank)} is not a rank; it must be a whole number from 1")
    if isinstance(alpha, bool) or not isinstance(alpha, int | float):
        raise CheckpointError(f"{path}: lora_alpha = {shown(alpha)} is not a number")
    if not isinstance(base, str) or not base:
        raise CheckpointError(f"{path}: base_model_name_or_path = {shown(base)} does not name the model it belongs to")
    if type(stable) is not bool:
        raise CheckpointError(f"{path}: use_rslora = {shown(stable)} is neither true nor false")
    if not isinstance(parameters, list) or not all(isinstance(name, str) for name in parameters):
        raise CheckpointError(f"{path}: target_parameters = {shown(parameters)} is not a list of names")
    return Settings(base, rank, alpha / (rank**0.5 if stable else rank), tuple(parameters))


def read_pairs(folder: Path, config: HybridConfig) -> dict[str, Pair]:
    """The stored factors by the projection they adapt, in FP32; those of stacked experts with an axis for the expert.

    Raises:
        CheckpointError: a tensor is unknown, misshapen, there twice or without its partner.
    """
    settings = read_settings(folder)
    if not (folder / f"{STEM}.safetensors").exists() and (folder / f"{STEM}.bin").exists():
        raise CheckpointError(f"{folder / STEM}.bin: such files can run code and are not read; store it as safetensors")
    files = TensorFolder(folder, STEM)
    with torch.device("meta"):
        known = projections(HybridLM(config))
    known["lm_head"] = Projection("", "", config.vocab_size, config.width)
    modules = _modules(folder, files)
    pairs: dict[str, Pair] = {}
    for module, (name_a, name_b) in modules.items():
        name = _projection(module, set(modules), settings)
        shape = known.get(name) or _one_expert(name, known)
        if shape is None:
            raise CheckpointError(f"{folder}: {shown(module)} is nothing in this model that can be adapted")
        if name in pairs:
            raise CheckpointError(f"{folder}: adapters of {shown(name)} are there twice")
        rows = shape.copies * settings.rank
        for stored, wanted in ((name_a, (rows, shape.in_width)), (name_b, (shape.out_width, rows))):
            entry = files.entries[stored]
            if entry.shape != wanted or not entry.dtype.is_floating_point:
                raise CheckpointError(
                    f"{folder}: tensor {shown(stored)} is {entry.dtype} {entry.shape}; the model and rank "
                    f"{settings.rank} ask for {wanted}"
                )
        a, b = files.read(name_a).float(), files.read(name_b).float()
        if shape.routed:
            a = a.unflatten(0, (shape.copies, settings.rank))
            b = b.unflatten(1, (settings.rank, shape.copies)).permute(2, 0, 1)
        pairs[name] = Pair(a, b)
    if twice := [name for name in pairs if (one := _EXPERT.fullmatch(name)) and f"{one[1]}.{one[3]}" in pairs]:
        raise CheckpointError(f"{folder}: adapters of {shown(twice[0])} are there twice, also in a stack")
    return pairs


def _modules(folder: Path, files: TensorFolder) -> dict[str, tuple[str, str]]:
    """Stored module -> names of its A and B."""
    modules = dict.fromkeys(name.rpartition(".lora_")[0] for name in files.entries)
    halves = {module: (f"{module}.lora_A.weight", f"{module}.lora_B.weight") for module in modules}
    wanted = {name for pair in halves.values() for name in pair}
    if unknown := files.entries.keys() - wanted:
        raise CheckpointError(f"{folder}: tensor {shown(min(unknown))} is not supported; known are lora_A and lora_B")
    if missing := wanted - files.entries.keys():
        raise CheckpointError(f"{folder}: tensor {shown(min(missing))} is missing")
    return halves


def _projection(module: str, modules: set[str], settings: Settings) -> str:
    """Our name of what a stored module adapts."""
    name = re.sub(r"^model\.", "backbone.", module.removeprefix(_PREFIX))
    if name.endswith(".experts.base_layer"):  # the inner of two wrappers
        return f"{name.removesuffix('.base_layer')}.up_proj"
    if not name.endswith(".experts"):
        return name
    up = f".{module}.up_proj"
    alone = f"{module}.base_layer" not in modules and any(up.endswith(f".{asked}") for asked in settings.parameters)
    return f"{name}.up_proj" if alone else f"{name}.down_proj"


def _one_expert(name: str, known: dict[str, Projection]) -> Projection | None:
    """A single expert's matrix, as adapters stored per expert name it."""
    parts = _EXPERT.fullmatch(name)
    stack = known.get(f"{parts[1]}.{parts[3]}") if parts else None
    if stack is None or parts is None or str(int(parts[2])) != parts[2] or int(parts[2]) >= stack.copies:
        return None
    return stack._replace(copies=1, routed=False)


def _by_matrix(pairs: dict[str, Pair]) -> dict[str, Pair]:
    """The factors by the name of the single matrix on disk that they adapt."""
    result: dict[str, Pair] = {}
    for name, pair in pairs.items():
        home, _, stack = name.rpartition(".")
        if pair.a.ndim == 3:
            result |= {f"{home}.{e}.{stack}": Pair(pair.a[e], pair.b[e]) for e in range(len(pair.a))}
        else:
            result[name] = pair
    return result


def _matrices(model: HybridLM, name: str, pair: Pair) -> Iterator[tuple[Tensor, Pair]]:
    """The model's own matrices that a pair adapts, each with its factors."""
    one = _EXPERT.fullmatch(name)
    if one:
        yield model.get_parameter(f"{one[1]}.{one[3]}").data[int(one[2])], pair
    elif pair.a.ndim == 3:
        for matrix, a, b in zip(model.get_parameter(name).data, *pair, strict=True):
            yield matrix, Pair(a, b)
    else:
        yield model.get_parameter(f"{name}.weight").data, pair


def _folded(weight: Tensor, pair: Pair, scale: float, rows: slice) -> Tensor:
    """Rows of W + c B A, summed in FP32, in the format of W."""
    return torch.addmm(weight.float(), pair.b[rows], pair.a, alpha=scale).to(weight.dtype)


def _pieces(rows: int, width: int) -> Iterator[slice]:
    """Consecutive rows of a matrix, a bounded number at a time."""
    step = max(1, PIECE // width)
    return (slice(start, min(start + step, rows)) for start in range(0, rows, step))


def _adapted(model: nn.Module) -> dict[str, Pair]:
    """The factors that a model trains, by projection."""
    found: dict[str, Pair] = {}
    for name, module in model.named_modules():
        if isinstance(module, AdaptedLinear):
            found[name] = Pair(module.lora_a, module.lora_b)
        elif isinstance(module, AdaptedExperts):
            for stack in STACKS:
                pair = Pair(*module.adapter(stack))
                if pair.a.requires_grad:
                    found[f"{name}.{stack}"] = pair
    return found


def _disk_tensors(model: HybridLM) -> Iterator[tuple[str, Tensor]]:
    """Every factor under its name in PEFT's files."""
    adapted = _adapted(model)
    for name, (a, b) in adapted.items():
        module = _PREFIX + _peft_name(name)
        if a.ndim == 3:
            home, _, stack = module.rpartition(".")
            inner = stack == "up_proj" and name.replace("up_proj", "down_proj") in adapted
            module = f"{home}.base_layer" if inner else home
            a, b = a.flatten(0, 1), b.permute(1, 2, 0).flatten(1)
        yield f"{module}.lora_A.weight", a
        yield f"{module}.lora_B.weight", b


def _targets(model: HybridLM, *, routed: bool) -> list[str]:
    """What is adapted as PEFT asks for it: by last name where everything of that name is adapted, else in full."""
    adapted, alike = _adapted(model), dict[str, list[str]]()
    for name, projection in projections(model).items():
        if projection.routed == routed:
            alike.setdefault(".".join(name.split(".")[-2 if routed else -1 :]), []).append(name)
    result: list[str] = []
    for leaf, names in alike.items():
        chosen = [_peft_name(name) for name in names if name in adapted]
        result += [leaf] if len(chosen) == len(names) else chosen
    return result


def _peft_name(name: str) -> str:
    """Our name of a module as transformers has it."""
    return re.sub(r"^backbone\.", "model.", name)
