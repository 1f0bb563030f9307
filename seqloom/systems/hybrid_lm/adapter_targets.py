"""Which projections of a model get adapters, and whether that reaches enough of it.

A hybrid stack has four kinds of layers, and the lists of targets that other models made popular name projections of
only one of them. So what is reached is counted for every kind, shown before the first step, and refused when a kind
would stay as it is without the user having said so.
"""

import re
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import Any

import torch

from seqloom.core.errors import ConfigError
from seqloom.nn.lora import MTP, Projection, projections
from seqloom.nn.pattern import KINDS
from seqloom.systems.hybrid_lm.config import HybridConfig, LoraConfig
from seqloom.systems.hybrid_lm.model import HybridLM

_INSIDE = re.compile(r".*\.?layers\.\d+\.(mixer\.)?")

NAMES = {**KINDS, MTP: "prediction block"}


@dataclass(frozen=True)
class Targets:
    """The choice, and what it was made from.

    Attributes:
        known: everything that can be adapted, by name.
        names: what is adapted, in module order.
        rank: rows of every A.
    """

    known: dict[str, Projection]
    names: tuple[str, ...]
    rank: int

    @property
    def parameters(self) -> int:
        """Numbers in all adapters."""
        return sum(self.known[name].factor_numbers(self.rank) for name in self.names)

    def coverage(self) -> dict[str, dict[str, Any]]:
        """Per kind of layer: how many of its layers are reached, through which projections, with how many numbers."""
        table: dict[str, dict[str, Any]] = {}
        for kind in dict.fromkeys(projection.kind for projection in self.known.values()):
            every = {name: p for name, p in self.known.items() if p.kind == kind}
            adapted = {name: p for name, p in every.items() if name in self.names}
            leaves = {name: _INSIDE.sub("", name) for name in every}
            reached = list(dict.fromkeys(leaves[name] for name in adapted))
            table[kind] = {
                "name": NAMES[kind],
                "layers": len({p.layer for p in every.values()}),
                "adapted_layers": len({p.layer for p in adapted.values()}),
                "projections": reached,
                "untouched": [leaf for leaf in dict.fromkeys(leaves.values()) if leaf not in reached],
                "parameters": sum(p.factor_numbers(self.rank) for p in adapted.values()),
            }
        return table


@lru_cache(maxsize=4)
def choose_targets(config: HybridConfig, lora: LoraConfig) -> Targets:
    """The projections that get adapters.

    Raises:
        ConfigError: a pattern or kind names nothing of this model, or too little of a kind of layers is reached.
    """
    if config.stability.sigma_reparam:
        raise ConfigError("adapter: model.stability.sigma_reparam divides matrices by norms that adapters would change")
    with torch.device("meta"):
        known = projections(HybridLM(config))
    kinds = dict.fromkeys(projection.kind for projection in known.values())
    if foreign := [kind for kind in lora.leave_out if kind not in kinds]:
        raise ConfigError(f"adapter.leave_out: this model has no '{foreign[0]}' layers; it has {', '.join(kinds)}")
    if config.mtp is not None and config.mtp.loss_weight == 0:  # the block rests, and its adapters would never learn
        known = {name: projection for name, projection in known.items() if projection.kind != MTP}
    for pattern in lora.targets:
        if not any(_matches(name, pattern) for name in known):
            leaves = sorted({name.rpartition(".")[2] for name in known})
            raise ConfigError(f"adapter.targets: '{pattern}' matches no projection; there are {', '.join(leaves)}")
    names = tuple(
        name
        for name, projection in known.items()
        if projection.kind not in lora.leave_out
        and (lora.experts or not projection.routed)
        and any(_matches(name, pattern) for pattern in lora.targets)
    )
    targets = Targets(known, names, lora.rank)
    _refuse_too_little(targets, lora)
    if lora.dropout and any(known[name].routed for name in names):
        raise ConfigError(
            f"adapter.dropout: {lora.dropout:g} is not possible for routed experts; set it to 0, or adapter.experts to "
            "false"
        )
    return targets


def _refuse_too_little(targets: Targets, lora: LoraConfig) -> None:
    for kind, row in targets.coverage().items():
        reached, layers = row["adapted_layers"], row["layers"]
        if kind in lora.leave_out or (reached and reached >= lora.min_coverage * layers):
            continue
        raise ConfigError(
            f"adapter.targets: {reached} of {layers} {row['name']} layers would get an adapter (adapter.min_coverage "
            f"is {lora.min_coverage:g}); add targets among {', '.join(row['untouched'] or row['projections'])}, or, if "
            f"these layers are to stay as they are, add '{kind}' to adapter.leave_out"
        )


def _matches(name: str, pattern: str) -> bool:
    return fnmatchcase(name if "." in pattern else name.rpartition(".")[2], pattern)
