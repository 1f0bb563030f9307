"""What a trained agent's attention is good for, measured on episodes that it plays.

near        share of attention within r cells of the objects that matter, over the share of a uniform map
masking     KL of the policy after covering the cells that get most attention, over that after covering others
insertion   attention at a second ball pasted into five frames in a row, over that without it
saliency    correlation of attention with perturbation saliency, and how spread out both are
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from seqloom.systems.attention_agent.insertion import Insertion
    from seqloom.systems.attention_agent.play import Moment, Player

OBJECTS = {"catch": ("ball", "paddle"), "ale:pong": ("ball", "paddle")}
"""Environment -> the objects that an agent should look at."""
SPRITE = "ball"
RADII = (0, 1, 2)
MOMENTS, EVERY, SALIENCY_EVERY = 1200, 4, 24
"""Steps that are played at most; one in so many is masked and gets a sprite, one in so many is blurred."""
FOLLOWING = 5
"""Steps in which the sprite is there."""
COVERED = 12
"""The region to cover is one of so many parts of the image."""


@dataclass(frozen=True, kw_only=True)
class Near:
    """Means over moments.

    Attributes:
        mass: share of attention of all queries within the radius.
        uniform: share of the image there, which a uniform map would have.
    """

    radius: int
    mass: float
    uniform: float

    @property
    def ratio(self) -> float:
        return self.mass / self.uniform


@dataclass(frozen=True, kw_only=True)
class Causes:
    """What was measured.

    Attributes:
        attended_kl: of the policy, in nats, when the attended region is covered; other_kl: another one like it.
        risen: share of the insertions in which attention rose; rise: median of how many times as much it was.
        insertion_kl: of the policy, mean over insertions and steps.
        correlation: of attention with saliency.
        attention_entropy, saliency_entropy: in nats, of both as shares on the cells of the attention maps.
    """

    moments: int
    near: list[Near]
    maskings: int
    attended_kl: float
    other_kl: float
    insertions: int
    risen: float
    rise: float
    insertion_kl: float
    correlation: float
    attention_entropy: float
    saliency_entropy: float

    @property
    def masking_ratio(self) -> float:
        return self.attended_kl / max(self.other_kl, 1e-12)

    def judged(self) -> Near:
        """The largest radius that leaves attention room to be ten times as dense as uniform; else the smallest."""
        return max(
            (near for near in self.near if near.uniform <= 0.1), key=lambda near: near.radius, default=self.near[0]
        )

    def as_data(self) -> dict[str, Any]:
        return asdict(self) | {"masking_ratio": self.masking_ratio}


def causes(folder: Path) -> Causes:
    """Play with a trained agent and intervene.

    Args:
        folder: a run folder in an environment of `OBJECTS`.
    """
    from seqloom.core.seeds import generator
    from seqloom.systems.attention_agent import insertion
    from seqloom.systems.attention_agent.attention_facts import entropy, shares
    from seqloom.systems.attention_agent.play import open_player
    from seqloom.systems.attention_agent.saliency import agreement, resized, saliency

    player = open_player(folder)
    draw = generator(player.seed, "causes")
    covered = max(1, round(player.model.config.image[0] * player.model.config.image[1] / COVERED))
    near: dict[int, list[tuple[float, float]]] = {radius: [] for radius in RADII}
    maskings, insertions, correlations, spreads = [], list["Insertion"](), list[float](), list[tuple[float, float]]()
    played = 0
    for window in _windows(player):
        moment, turn = window[0], played
        played += 1
        _count_near(player, moment, near)
        if turn % EVERY == 0:
            masked = insertion.mask_attended(player.model, moment.seen, moment.state, covered, draw)
            maskings += [masked] if masked is not None else []
            if len(window) == FOLLOWING and (inserted := _inserted(player, window, draw)) is not None:
                insertions.append(inserted)
        if turn % SALIENCY_EVERY == 0:
            assert moment.glimpse is not None
            scores, maps = saliency(player.model, moment.seen, moment.state).policy, shares(moment.glimpse.maps.cpu())
            correlations.append(agreement(scores, maps))
            together = shares(resized(scores, *maps.shape[-2:]))
            spreads.append((float(entropy(maps.mean(0))), float(entropy(together))))
    rises = sorted(each.rise for each in insertions)
    return Causes(
        moments=played,
        near=[
            Near(radius=radius, mass=mean(mass for mass, _ in each), uniform=mean(share for _, share in each))
            for radius, each in near.items()
        ],
        maskings=len(maskings),
        attended_kl=mean(each.attended for each in maskings),
        other_kl=mean(each.other for each in maskings),
        insertions=len(insertions),
        risen=mean(each.risen for each in insertions),
        rise=rises[len(rises) // 2],
        insertion_kl=mean(float(each.kl.mean()) for each in insertions),
        correlation=mean(correlations),
        attention_entropy=mean(attention for attention, _ in spreads),
        saliency_entropy=mean(salient for _, salient in spreads),
    )


def _windows(player: "Player") -> "Iterator[list[Moment]]":
    """Every step together with those that follow it, over episodes until there are enough."""
    from seqloom.systems.attention_agent.play import moments

    number = count = 0
    while count < MOMENTS:
        window = list["Moment"]()
        for moment in moments(player, number):
            window.append(moment)
            if len(window) == FOLLOWING:
                yield window
                window = window[1:]
                count += 1
                if count == MOMENTS:
                    return
        for start in range(len(window)):
            yield window[start:]
            count += 1
        number += 1


def _count_near(player: "Player", moment: "Moment", near: dict[int, list[tuple[float, float]]]) -> None:
    from seqloom.systems.attention_agent.attention_facts import cells, shares

    assert moment.glimpse is not None
    maps = shares(moment.glimpse.maps.cpu()).mean(0)
    if (mask := _objects(player, moment)) is None:
        return
    for radius, found in near.items():
        inside = cells(mask, maps.shape[0], maps.shape[1], radius)
        found.append((float((maps * inside).sum()), float(inside.float().mean())))


def _objects(player: "Player", moment: "Moment") -> "Tensor | None":
    """Pixels of the objects that matter, if all of them are to be seen."""
    from seqloom.systems.attention_agent.attention_facts import objects

    found = objects(player.environment.name, moment.frame)
    wanted = OBJECTS[player.environment.name.lower()]
    if not all(name in found for name in wanted):
        return None
    mask = found[wanted[0]]
    for name in wanted[1:]:
        mask = mask | found[name]
    return mask


def _inserted(player: "Player", window: "list[Moment]", draw: Any) -> "Insertion | None":
    """A second ball at a free place, in all steps of a window; None where there is none to copy or no place."""
    import torch

    from seqloom.rl.unroll import Seen
    from seqloom.systems.attention_agent import insertion
    from seqloom.systems.attention_agent.attention_facts import LOOKS, objects

    shown = objects(player.environment.name, window[0].frame)
    if SPRITE not in shown:
        return None
    sprite = insertion.cut(window[0].seen.frames[0, 0].cpu(), shown[SPRITE])
    rows = len(window[0].frame)
    start, stop = (round(share * rows) for share in LOOKS[player.environment.name.lower()][SPRITE].rows)
    taken = torch.ones(shown[SPRITE].shape, dtype=torch.bool)
    taken[start:stop] = False
    for moment in window:
        for mask in objects(player.environment.name, moment.frame).values():
            taken |= mask
    if (place := insertion.place_for(sprite, taken, draw)) is None:
        return None
    seen = Seen(*(torch.cat(parts) for parts in zip(*(moment.seen for moment in window), strict=True)))
    return insertion.insert(player.model, seen, window[0].state, sprite, *place)
