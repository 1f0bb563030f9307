"""Training that begins with the weights of a model folder: all of them, or adapters on top of them.

    all       the weights become FP32 masters as they are read, one tensor at a time
    adapters  the weights stay in the number format of the file, frozen, and are widened where they are multiplied

No random weights are drawn for what the folder holds, so the most memory is that of the finished model.
"""

from dataclasses import fields, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from seqloom.core.checkpoint.json_file import read_json
from seqloom.core.errors import ConfigError
from seqloom.core.rooms import is_adapter
from seqloom.nn.lora import Factors, attach
from seqloom.systems.hybrid_lm.adapter_targets import choose_targets
from seqloom.systems.hybrid_lm.config import HybridConfig, Run
from seqloom.systems.hybrid_lm.folder import read_model, read_weights
from seqloom.systems.hybrid_lm.model import Attached, HybridLM
from seqloom.systems.hybrid_lm.public_config import PublicConfig, open_public

TRAINING_ONLY = {"moe": ("bias_rate", "balance_weight"), "mtp": ("depth", "loss_weight")}
"""Settings that steer training and are no property of the stored model; a run's own are kept."""


def read_base_config(folder: Path) -> PublicConfig:
    """Configuration of a model folder.

    Raises:
        CheckpointError, ConfigError: it has none, or one that cannot be used.
        ConfigError: the folder holds adapters only.
    """
    if is_adapter(folder):
        raise ConfigError(
            f"{folder}: holds adapters, not a model; merge them first: seqloom merge {folder} --out FOLDER"
        )
    return open_public(folder / "config.json")


class Inherited(NamedTuple):
    """Settings of a base folder that its fine-tuned models keep: fields of config.json, and generation settings."""

    config: dict[str, Any]
    generation: dict[str, Any]


def inherited_settings(run: Run) -> Inherited:
    """What a run keeps of the folder it begins with, as long as it keeps its tokenizer.

    Raises:
        CheckpointError, ConfigError: the folder cannot be used.
    """
    base = run.base()
    if base is None or run.task.data.tokenizer != run.init_from:
        return Inherited({}, {})
    path = base / "generation_config.json"
    return Inherited(read_base_config(base).carried, read_json(path) if path.exists() else {})


def stored_width(run: Run) -> int:
    """Bytes of a number in the folder that a run begins with; 4 while none is named."""
    base = run.base() if run.init_from else None
    return 2 if base is not None and read_base_config(base).format == "bf16" else 4


def starting_from(run: Run, folder: str) -> Run:
    """The run on the shapes, weights and tokenizer of a model folder; see `Run.starting_from`."""
    base = replace(run, init_from=folder).base()
    assert base is not None
    model = _with_settings_of(run.model, read_base_config(base).config)
    data = replace(run.task.data, tokenizer=folder)
    return replace(run, model=model, task=replace(run.task, data=data), init_from=folder)


def build_on_base(run: Run) -> HybridLM:
    """The model of a run that begins with a folder, with fresh adapters if the run trains adapters.

    Raises:
        ConfigError: the run describes another model than the folder holds, or adapters reach too little.
        CheckpointError: the folder is damaged.
    """
    base = run.base()
    assert base is not None
    assert run.init_from is not None
    public = read_base_config(base)
    _refuse_other_shapes(run.model, public.config, run.init_from)
    if run.adapter is None:
        return _with_masters(run.model, base)
    lora, names = run.adapter, choose_targets(run.model, run.adapter).names
    model = read_model(base)
    model.config = run.model
    attach(model, names, Factors(lora.rank, lora.scale, lora.dropout))
    model.adapter = Attached(lora, str(Path(run.init_from).absolute()), public)
    for moe in model.expert_layers():
        moe.bias_rate = 0.0  # the router's selection bias is part of the frozen model
    return model


def _with_masters(config: HybridConfig, base: Path) -> HybridLM:
    with torch.device("meta"):
        model = HybridLM(config)
    model.to_empty(device="cpu")
    read_weights(model, base)
    for moe in model.expert_layers():
        moe.gate.load.zero_()
    if model.mtp is not None and config.mtp is not None and config.mtp.loss_weight == 0:
        model.mtp.requires_grad_(False)  # no loss reaches it; it stays part of the model as it is
    return model


def _with_settings_of(run: HybridConfig, stored: HybridConfig) -> HybridConfig:
    """The stored shapes, with what steers training taken from the run where it says so."""
    changed: dict[str, Any] = {"stability": replace(stored.stability, z_loss=run.stability.z_loss)}
    for part, names in TRAINING_ONLY.items():
        ours, theirs = getattr(run, part), getattr(stored, part)
        if ours is not None and theirs is not None:
            changed[part] = replace(theirs, **{name: getattr(ours, name) for name in names})
    return replace(stored, **changed)


def _refuse_other_shapes(run: HybridConfig, stored: HybridConfig, folder: str) -> None:
    expected = replace(_with_settings_of(run, stored), init_std=run.init_std)
    if run.mamba is not None and stored.mamba is not None:  # the length of chunks changes speed and rounding only
        expected = replace(expected, mamba=replace(stored.mamba, chunk=run.mamba.chunk))
    for field in fields(HybridConfig):
        ours, theirs = getattr(run, field.name), getattr(expected, field.name)
        if ours != theirs:
            raise ConfigError(
                f"model.{field.name}: {ours} in the run, {theirs} in {folder}, whose weights it begins with; "
                "take the model's settings from the folder with --model"
            )
