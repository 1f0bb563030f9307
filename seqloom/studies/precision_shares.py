"""Which share of tensors a runtime choice holds in few bits, by every denominator that makes sense.

A paper's "98.38 % of tensors" leaves open what is counted. From one step of a training, each use of an operand (layer,
product, operand) says how often each representation was chosen; from that:

    uses         all uses of operands in the three products        by operand, by product    parts of the same
    tensors      x, W and dy of every layer once: FP8 if every use of it is
    elements     uses, weighted by the numbers they hold
    products     products both of whose operands are FP8: what a tensor core of that format can multiply
    model        tensors, the output head among them, which stays in BF16
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from seqloom.numerics.recipes import OPERANDS

BF16 = "bf16"
OUTSIDE = 3
"""Tensors of the output head: x, W and dy."""


@dataclass(frozen=True)
class Use:
    """One operand of one product of one layer in a step.

    Attributes:
        counts: how often each representation was chosen for it, or for its parts.
        elements: numbers in the operand.
    """

    layer: str
    product: str
    operand: str
    counts: Mapping[str, int]
    elements: int

    @property
    def share(self) -> float:
        """Of this use in few bits."""
        total = sum(self.counts.values())
        return 1 - self.counts.get(BF16, 0) / total if total else 0.0


def uses(
    events: Mapping[tuple[str, str], Mapping[str, int]], shapes: Mapping[str, Sequence[int]], tokens: int
) -> list[Use]:
    """All uses of a step; one quantization that serves two products is a use in each.

    Args:
        events: by parameter and role, the role ending in PRODUCT.OPERAND.
        shapes: of the parameters, outputs first.
        tokens: rows of x and dy.
    """
    counted = {(layer, *role.split(".")[-2:]): counts for (layer, role), counts in events.items()}
    found = []
    for layer in dict.fromkeys(layer for layer, _, _ in counted):
        outputs, inputs = shapes[layer]
        elements = {"x": tokens * inputs, "w": outputs * inputs, "dy": tokens * outputs}
        for product, operands in OPERANDS.items():
            for operand in operands:
                counts = counted.get((layer, product, operand)) or _elsewhere(counted, layer, operand)
                if counts:
                    found.append(Use(layer, product, operand, counts, elements[operand]))
    return found


def shares(found: Sequence[Use]) -> dict[str, float]:
    """Denominator -> share in few bits."""
    tensors = _grouped(found, lambda use: (use.layer, use.operand))
    products = _grouped(found, lambda use: (use.layer, use.product))
    low = [min(use.share for use in each) for each in tensors]
    return {
        "uses": _events(found),
        **{f"uses of {name}": _events(use for use in found if use.operand == name) for name in ("x", "w", "dy")},
        **{
            f"uses in {name.replace('_', ' ')}": _events(use for use in found if use.product == name)
            for name in OPERANDS
        },
        "tensors": _mean(low),
        "elements": sum(use.share * use.elements for use in found) / max(1, sum(use.elements for use in found)),
        "products": _mean([min(use.share for use in each) for each in products]),
        "model": sum(low) / (len(low) + OUTSIDE),
    }


def by_layer(found: Sequence[Use]) -> dict[str, dict[str, float]]:
    """Layer -> operand -> share of its uses in few bits."""
    names = ("x", "w", "dy")
    return {
        layer: {name: _events(use for use in found if (use.layer, use.operand) == (layer, name)) for name in names}
        for layer in dict.fromkeys(use.layer for use in found)
    }


def _elsewhere(
    counted: Mapping[tuple[str, ...], Mapping[str, int]], layer: str, operand: str
) -> Mapping[str, int] | None:
    """What was chosen for an operand in whichever product it was asked for."""
    return next((counts for key, counts in counted.items() if (key[0], key[-1]) == (layer, operand)), None)


def _grouped(found: Iterable[Use], key: Callable[[Use], tuple[str, str]]) -> list[list[Use]]:
    groups: dict[tuple[str, str], list[Use]] = {}
    for use in found:
        groups.setdefault(key(use), []).append(use)
    return list(groups.values())


def _events(found: Iterable[Use]) -> float:
    counts = [use.counts for use in found]
    total = sum(sum(each.values()) for each in counts)
    return 1 - sum(each.get(BF16, 0) for each in counts) / total if total else 0.0


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
