"""Model folders of the recogniser: config.json, model.safetensors (with the statistics of features and of batch
normalization among the weights), alphabet.json. Read strictly: every name, shape and number format must be right.
"""

import json
from pathlib import Path

import torch

from seqloom.core.checkpoint import manifest
from seqloom.core.checkpoint.json_file import read_config
from seqloom.core.checkpoint.tensor_folder import TensorFolder
from seqloom.core.checkpoint.tensors import save_tensors
from seqloom.core.config import parse, to_data
from seqloom.core.errors import CheckpointError
from seqloom.systems.deep_speech2.alphabet import ALPHABET, Alphabet
from seqloom.systems.deep_speech2.config import MODEL_TYPES, DeepSpeech2Config
from seqloom.systems.deep_speech2.model import DeepSpeech2

CONFIG, WEIGHTS = "config.json", "model.safetensors"


def write_model(model: DeepSpeech2, folder: Path) -> None:
    """Write config.json, weights, and the alphabet where the model has one.

    Raises:
        CheckpointError: a file cannot be written.
    """
    fields = {"model_type": MODEL_TYPES[0], **to_data(model.config)}
    (folder / CONFIG).write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")
    save_tensors(folder / WEIGHTS, model.state_dict())
    if model.alphabet is not None:
        model.alphabet.write(folder)


def read_model(folder: Path, *, verified: bool = False) -> DeepSpeech2:
    """Open a folder that `write_model` wrote.

    Args:
        verified: the caller has just compared the folder with its manifest, which is otherwise done here.
    Raises:
        CheckpointError: a file is missing, damaged or refused; a tensor is missing, unknown or misshapen.
        ConfigError: the configuration contradicts itself, or has unknown fields.
    """
    if not verified and (folder / manifest.NAME).exists():
        needed = {CONFIG, WEIGHTS, ALPHABET}
        if problems := manifest.verify(folder, lambda name: name in needed):
            raise CheckpointError(f"{folder}: not as it was written: {', '.join(problems)}")
    model = DeepSpeech2(read_shapes(folder))
    read_weights(model, folder)
    return model


def read_shapes(folder: Path) -> DeepSpeech2Config:
    """The configuration of a model folder."""
    fields = read_config(folder / CONFIG)
    fields.pop("model_type", None)
    return parse(DeepSpeech2Config, fields, str(folder / CONFIG))


def read_weights(model: DeepSpeech2, folder: Path) -> None:
    """Copy weights and alphabet of a folder into a model of the same shapes; raises as `read_model`."""
    tensors, wanted = TensorFolder(folder), model.state_dict()
    missing = [name for name in wanted if name not in tensors.entries]
    unknown = [name for name in tensors.entries if name not in wanted]
    if missing or unknown:
        raise CheckpointError(
            f"{folder}: {len(missing)} tensors missing {missing[:5]}, {len(unknown)} unknown {unknown[:5]}"
        )
    for name, tensor in wanted.items():
        entry = tensors.entries[name]
        if entry.shape != tuple(tensor.shape) or entry.dtype != torch.float32:
            raise CheckpointError(
                f"{entry.file}: tensor '{name}' is {entry.dtype} {entry.shape}, the configuration asks for "
                f"torch.float32 {tuple(tensor.shape)}"
            )
    alphabet = Alphabet.read(folder)
    if len(alphabet) != model.config.vocab_size:
        raise CheckpointError(
            f"{folder / ALPHABET}: {len(alphabet)} symbols; the model has {model.config.vocab_size} outputs"
        )
    with torch.no_grad():
        for name, tensor in wanted.items():
            tensor.copy_(tensors.read(name))
    model.alphabet = alphabet
