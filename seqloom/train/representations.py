"""What the layers chose in a step where a recipe lets them choose representations (MoR): shares, and every count.

    fp8_share, nvfp4_share = events in that representation / all events        over layers, products and operands

An event is one operand of one product in one micro-batch, or one part of it where parts are chosen for. The counts by
layer, product, operand and representation are logged, so that any other denominator can be formed from them.
Paper: MoR, arXiv 2512.22804 (98.38 % of tensors in FP8; of which tensors is not said there).
"""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from seqloom.core.distributed import here
from seqloom.numerics.place import events

_SHARES = {"fp8_share": ("e4m3", "e5m2"), "nvfp4_share": ("e2m1",)}


@dataclass
class Chosen:
    """Of one step.

    Attributes:
        events: counts by "parameter.product.operand.representation"; empty where nothing is chosen.
    """

    events: dict[str, int] = field(default_factory=dict)

    def read(self, model: Any) -> None:
        """Take the counts of the step in work, those of all ranks with other tokens together; collective."""
        found = {
            f"{name}.{role}.{kind}": count
            for (name, role), kinds in events(model).items()
            for kind, count in kinds.items()
        }
        total = here().batch.total(list(found.values())) if found else []
        self.events = {name: int(count) for name, count in zip(found, total, strict=True)}

    def shares(self) -> dict[str, float]:
        """Of all events, those in FP8 and, where it may be chosen, in NVFP4."""
        counts = Counter[str]()
        for name, count in self.events.items():
            counts[name.rpartition(".")[2]] += count
        return {
            share: sum(counts[kind] for kind in kinds) / counts.total()
            for share, kinds in _SHARES.items()
            if counts.keys() & set(kinds) and counts.total()  # nothing is chosen after a late switch
        }
