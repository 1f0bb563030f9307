"""What attention maps say in numbers: how spread out, drawn by what or by where, and how close to which objects.

    entropy      H = -Σ_yx A_yx log A_yx                       nats; log(Y X) when nothing is preferred
    what/where   log Var_yx(L_what) - log Var_yx(L_where)      above 0 the content decides, below 0 the place does
    near         Σ A_yx over cells within r of an object, beside the share that a uniform map would have

Where objects are is read off the frames of those games whose colours are known.
Paper: attention-augmented agent, section 4 (what and where, attention to players and threats).
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from seqloom.nn.glimpse import Glimpse
from seqloom.rl.environment import Frame
from seqloom.rl.games import CueMemory, KeyDoor

TINY = 1e-12
RADIUS, SIDE = 2, 20
"""Cells around an object that count as near it, in an image of so many cells; fewer in a smaller image."""

Colour = tuple[int, int, int]


class Look(NamedTuple):
    """Any object that can be told by its colours.

    Attributes:
        rows, columns: part of the frame in which these colours mean the object, from and up to, as shares of its size.
    """

    colours: tuple[Colour, ...]
    rows: tuple[float, float] = (0.0, 1.0)
    columns: tuple[float, float] = (0.0, 1.0)


def _kinds(*kinds: int) -> tuple[Colour, ...]:
    return tuple((int(r), int(g), int(b)) for r, g, b in KeyDoor.colours[list(kinds)])


_FIELD = (35 / 210, 193 / 210)  # of Pong, between its two lines
LOOKS: Mapping[str, Mapping[str, Look]] = {
    "catch": {"ball": Look(((255, 80, 80),)), "paddle": Look(((60, 220, 60),))},
    "key_door": {
        "player": Look(((80, 140, 250), (250, 160, 240))),
        "key": Look(_kinds(KeyDoor.key)),
        "door": Look(_kinds(KeyDoor.closed, KeyDoor.open_)),
        "goal": Look(_kinds(KeyDoor.goal)),
    },
    "cue_memory": {"colours": Look(CueMemory.colours)},
    "ale:pong": {
        "ball": Look(((236, 236, 236),), _FIELD),
        "paddle": Look(((92, 186, 92),), _FIELD),
        "opponent": Look(((213, 130, 74),), _FIELD),
    },
    "ale:breakout": {"ball and paddle": Look(((200, 72, 72),), (94 / 210, 195 / 210), (8 / 160, 152 / 160))},
}
"""Environment -> object -> how it looks."""


def objects(environment: str, frame: Frame) -> dict[str, Bool[Tensor, "Y X"]]:
    """Pixels of every known object that is to be seen; empty for environments whose looks are not known."""
    found = {}
    for name, look in LOOKS.get(environment.lower(), {}).items():
        mask = np.zeros(frame.shape[:2], dtype=bool)
        rows, columns = (
            slice(*(round(share * size) for share in part))
            for part, size in ((look.rows, frame.shape[0]), (look.columns, frame.shape[1]))
        )
        for colour in look.colours:
            mask[rows, columns] |= (frame[rows, columns] == colour).all(-1)
        if mask.any():
            found[name] = torch.from_numpy(mask)
    return found


def cells(mask: Bool[Tensor, "Y X"], rows: int, columns: int, radius: int = 0) -> Bool[Tensor, "y x"]:
    """Cells of a coarser image that pixels touch, and those within `radius` of them (also diagonally)."""
    touched = F.adaptive_max_pool2d(mask[None, None].float(), (rows, columns))
    return F.max_pool2d(touched, 2 * radius + 1, 1, radius)[0, 0] > 0


def near_radius(rows: int, columns: int) -> int:
    """A tenth of the image's shorter side, in cells."""
    return round(RADIUS * min(rows, columns) / SIDE)


def shares(weights: Float[Tensor, "*N Y X"]) -> Float[Tensor, "*N Y X"]:
    """Non-negative and 1 in sum over the image: attention with a softmax is so already, that without by its size."""
    sizes = weights.abs()
    return sizes / (sizes.sum((-2, -1), keepdim=True) + TINY)


def entropy(maps: Float[Tensor, "*N Y X"]) -> Float[Tensor, "*N"]:
    """Of shares, in nats."""
    return -torch.xlogy(maps, maps).sum((-2, -1))


def what_where(glimpse: Glimpse) -> Float[Tensor, "*B N"]:
    """Log of the ratio of the logits' variances over the image; above 0, content decides where a query looks."""
    what, where = (part.flatten(-2).var(-1, correction=0) for part in (glimpse.logits_what, glimpse.logits_where))
    return (what + TINY).log() - (where + TINY).log()


class StepFacts(NamedTuple):
    """Of one step; lists have an entry per query.

    Attributes:
        near: object -> share of attention within `near_radius` cells of it.
        uniform: object -> the share that a uniform map would have there.
    """

    entropy: list[float]
    what_where: list[float]
    near: dict[str, list[float]]
    uniform: dict[str, float]


def step_facts(glimpse: Glimpse, environment: str, frame: Frame) -> StepFacts:
    """
    Args:
        glimpse: of one step of one environment, N first.
    """
    maps = shares(glimpse.maps.cpu())
    image = maps.shape[-2], maps.shape[-1]
    near, uniform = dict[str, list[float]](), dict[str, float]()
    for name, mask in objects(environment, frame).items():
        inside = cells(mask, *image, near_radius(*image))
        near[name] = (maps * inside).sum((-2, -1)).tolist()
        uniform[name] = float(inside.float().mean())
    return StepFacts(entropy(maps).tolist(), what_where(glimpse).tolist(), near, uniform)


def attended(maps: Float[Tensor, "N Y X"], count: int) -> Bool[Tensor, "Y X"]:
    """The cells that get most attention of all queries together."""
    total = maps.sum(0)
    mask = torch.zeros(total.numel(), dtype=torch.bool)
    mask[total.flatten().argsort(descending=True, stable=True)[:count]] = True
    return mask.view(total.shape)


def mean_facts(steps: list[StepFacts]) -> list[dict[str, float]]:
    """Means over steps, by query; objects where they are to be seen."""
    queries = len(steps[0].entropy) if steps else 0
    names = {name for step in steps for name in step.near}
    found = []
    for n in range(queries):
        facts = {
            "entropy": float(np.mean([step.entropy[n] for step in steps])),
            "what_where": float(np.mean([step.what_where[n] for step in steps])),
            "what_share": float(np.mean([step.what_where[n] > 0 for step in steps])),
        }
        for name in sorted(names):
            there = [step for step in steps if name in step.near]
            facts[f"near_{name.replace(' ', '_')}"] = float(np.mean([step.near[name][n] for step in there]))
            facts[f"near_{name.replace(' ', '_')}_uniform"] = float(np.mean([step.uniform[name] for step in there]))
        found.append(facts)
    return found
