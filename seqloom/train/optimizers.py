"""From a model and settings to the optimizers that step it, and to the tensors that store them.

Which parameter gets what:

    hidden matrices                     Muon if chosen, with decay; as the others otherwise
    other parameters of 2 and more axes AdamW, SGD or RMSProp with decay (embedding, head, router, convolution)
    one axis or none                    the same without decay (norms, biases, A, D, dt)

A module says which of its own parameters are hidden matrices in a tuple `hidden_matrices` of attribute names, each
shaped [rows = outputs, columns = inputs] or a stack [experts, rows, columns]. Nothing is guessed from names, and an
unmarked parameter is always safe with AdamW.

State is stored by parameter name, as `backbone.layers.0.mixer.in_proj.weight.exp_avg`, and loaded strictly.

Where several processes train a model, each optimizer works on this rank's pieces as on parameters of their own.
"""

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from seqloom.core.errors import CheckpointError, ConfigError
from seqloom.train.config import OptimizerConfig
from seqloom.train.muon import Dealt, Muon

if TYPE_CHECKING:
    from seqloom.train.parallel.spread import Spread

STATE_KEYS = {
    torch.optim.AdamW: ("exp_avg", "exp_avg_sq", "step"),
    torch.optim.SGD: ("momentum_buffer",),
    torch.optim.RMSprop: ("square_avg", "step"),
    Muon: ("momentum",),
}


class Optimizers:
    """The optimizers of one model, stepped and stored as one."""

    def __init__(self, parts: list[torch.optim.Optimizer], names: dict[Tensor, str]) -> None:
        self._parts = parts
        self._names = names
        self._peaks = [[group["lr"] for group in part.param_groups] for part in parts]

    def step(self, factor: float) -> None:
        """Take one step at this share of every group's peak learning rate."""
        for part, peaks in zip(self._parts, self._peaks, strict=True):
            for group, peak in zip(part.param_groups, peaks, strict=True):
                group["lr"] = factor * peak
            part.step()

    def state(self) -> dict[str, Tensor]:
        """Everything the optimizers remember, by parameter name; the tensors themselves, not copies."""
        return {
            f"{self._names[parameter]}.{key}": tensor
            for part in self._parts
            for parameter, kept in part.state.items()
            for key, tensor in kept.items()
        }

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over a state that `state` gave after at least one step of the same model and settings.

        Raises:
            CheckpointError: a tensor is missing, unknown, or of another shape or type.
        """
        homes = {
            f"{self._names[parameter]}.{key}": (part, parameter, key)
            for part in self._parts
            for group in part.param_groups
            for parameter in group["params"]
            for key in STATE_KEYS[type(part)]
        }
        missing, unknown = sorted(homes.keys() - tensors.keys()), sorted(tensors.keys() - homes.keys())
        if missing or unknown:
            raise CheckpointError(
                f"optimizer state does not fit this model: {len(missing)} tensors missing {missing[:3]}, "
                f"{len(unknown)} unknown {unknown[:3]}"
            )
        for name, (part, parameter, key) in homes.items():
            shape = () if key == "step" else tuple(parameter.shape)
            tensor = tensors[name]
            if tuple(tensor.shape) != shape or tensor.dtype != torch.float32:
                raise CheckpointError(
                    f"optimizer state: '{name}' is {tensor.dtype} {tuple(tensor.shape)}, expected torch.float32 {shape}"
                )
            part.state[parameter][key] = tensor.to(parameter.device, copy=True)


def build_optimizers(model: nn.Module, config: OptimizerConfig, spread: "Spread | None" = None) -> Optimizers:
    """Sort the trainable parameters of a model into groups and make their optimizers.

    Args:
        spread: what this rank holds of the model, if it is not all of it.
    Raises:
        ConfigError: Muon is asked for, and no module marks a hidden matrix.
    """
    parameters: dict[str, Tensor] = {name: p for name, p in model.named_parameters() if p.requires_grad}
    marked = hidden_matrices(model) if config.kind == "muon" else set()
    pieces = parameters if spread is None else spread.pieces
    names = {pieces[name]: name for name in parameters}
    hidden = {pieces[name] for name, parameter in parameters.items() if parameter in marked}
    if config.kind == "muon" and not hidden:
        raise ConfigError(
            "train.optimizer.kind: 'muon' needs modules that mark hidden matrices, and this model has none; use 'adamw'"
        )
    rest = [parameter for parameter in names if parameter not in hidden]
    groups = [
        {"params": [p for p in rest if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in rest if p.ndim < 2], "weight_decay": 0.0},
    ]
    parts: list[torch.optim.Optimizer] = []
    if rest:
        parts.append(_elementwise([group for group in groups if group["params"]], config))
    if hidden:
        matrices = [parameter for parameter in names if parameter in hidden]
        dealt = {} if spread is None else _dealt_matrices(spread, {names[matrix]: matrix for matrix in matrices})
        parts.append(Muon(matrices, config.muon_lr, config.momentum, config.weight_decay, dealt))
    _assert_groups(parts, names, config)
    return Optimizers(parts, names)


def _elementwise(groups: list[dict[str, Any]], config: OptimizerConfig) -> torch.optim.Optimizer:
    if config.kind == "sgd":
        return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=True)
    if config.kind == "rmsprop":
        return torch.optim.RMSprop(groups, lr=config.lr, alpha=config.beta2, eps=config.eps)
    betas = (config.beta1, config.beta2)
    return torch.optim.AdamW(groups, lr=config.lr, betas=betas, eps=config.eps, fused=True)


def _assert_groups(parts: list[torch.optim.Optimizer], names: dict[Tensor, str], config: OptimizerConfig) -> None:
    """Read back from the groups as made: every parameter once, matrices decayed and vectors not."""
    found = [(p, group["weight_decay"]) for part in parts for group in part.param_groups for p in group["params"]]
    assert sorted(names[p] for p, _ in found) == sorted(names.values()), "each parameter belongs to one group"
    wrong = [names[p] for p, decay in found if decay != (config.weight_decay if p.ndim >= 2 else 0.0)]
    assert not wrong, f"in the wrong decay group: {wrong}"


def _dealt_matrices(spread: "Spread", pieces: dict[str, Tensor]) -> dict[Tensor, Dealt]:
    """Those whose rows or columns lie on several ranks, with the way to the whole and back."""
    return {
        piece: Dealt(partial(spread.join, name), partial(spread.take, name))
        for name, piece in pieces.items()
        if not spread.whole_matrices(name)
    }


def hidden_matrices(model: nn.Module) -> set[Tensor]:
    """The parameters that modules mark as matrices from hidden width to hidden width."""
    return {getattr(module, name) for module in model.modules() for name in getattr(module, "hidden_matrices", ())}
