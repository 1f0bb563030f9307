"""Model folders: config.json with the agent's settings, model.safetensors with its weights in FP32. Read strictly."""

import json
from pathlib import Path

import torch
from torch import Tensor

from seqloom.core.checkpoint import manifest
from seqloom.core.checkpoint.json_file import read_json, shown
from seqloom.core.checkpoint.tensor_folder import TensorFolder
from seqloom.core.checkpoint.tensors import save_tensors
from seqloom.core.config import parse, to_data
from seqloom.core.errors import CheckpointError
from seqloom.systems.attention_agent.config import MODEL_TYPES, AgentConfig
from seqloom.systems.attention_agent.model import AttentionAgent

CONFIG, WEIGHTS = "config.json", "model.safetensors"
TYPE = "model_type"


def write_model(model: AttentionAgent, folder: Path) -> None:
    """
    Raises:
        CheckpointError: a file cannot be written.
    """
    fields = {TYPE: MODEL_TYPES[0], **to_data(model.config)}
    (folder / CONFIG).write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")
    save_tensors(folder / WEIGHTS, model.state_dict())


def read_agent_config(folder: Path) -> AgentConfig:
    """
    Raises:
        CheckpointError: the file is missing or damaged, or of another kind of model.
        ConfigError: a setting is unknown, missing or out of bounds.
    """
    path = folder / CONFIG
    fields = read_json(path)
    kind = fields.pop(TYPE, None)
    if kind not in MODEL_TYPES:
        raise CheckpointError(f"{path}: model_type {shown(kind)}; an agent's is '{MODEL_TYPES[0]}'")
    return parse(AgentConfig, fields, str(path))


def read_model(folder: Path, *, verified: bool = False) -> AttentionAgent:
    """Open an agent's folder.

    Args:
        verified: the caller has just compared the folder with its manifest, which is otherwise done here.
    Raises:
        CheckpointError: a file is missing, damaged or refused; a tensor is missing, unknown or misshapen.
        ConfigError: the configuration contradicts itself.
    """
    known = not verified and (folder / manifest.NAME).exists()
    if known and (problems := manifest.verify(folder, {CONFIG, WEIGHTS}.__contains__)):
        raise CheckpointError(f"{folder}: not as it was written: {', '.join(problems)}")
    config = read_agent_config(folder)
    with torch.random.fork_rng(devices=[]):  # loading draws from no generator that others use
        model = AttentionAgent(config)
    read_weights(model, folder)
    return model


@torch.no_grad()
def read_weights(model: AttentionAgent, folder: Path) -> None:
    """Copy the weights of a folder into a model of the same shapes.

    Raises:
        CheckpointError: a tensor is missing, unknown, of another shape or number format; or a file is damaged.
    """
    tensors, wanted = TensorFolder(folder), model.state_dict()
    missing, unknown = (sorted(some) for some in _differing(wanted, tensors))
    if missing or unknown:
        named = ", ".join(map(shown, [*missing, *unknown][:5]))
        raise CheckpointError(f"{folder}: {len(missing)} tensors missing, {len(unknown)} unknown: {named}")
    for name, tensor in wanted.items():
        entry = tensors.entries[name]
        if entry.shape != tuple(tensor.shape) or entry.dtype != tensor.dtype:
            raise CheckpointError(
                f"{entry.file}: tensor {shown(name)} is {entry.dtype} {entry.shape}, the configuration asks for "
                f"{tensor.dtype} {tuple(tensor.shape)}"
            )
    for name, tensor in wanted.items():
        tensor.copy_(tensors.read(name))


def _differing(wanted: dict[str, Tensor], found: TensorFolder) -> tuple[set[str], set[str]]:
    return wanted.keys() - found.entries.keys(), found.entries.keys() - wanted.keys()
