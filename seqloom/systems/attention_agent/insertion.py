"""Interventions: is attention a cause or a decoration? Change a frame, and see what attention and policy do.

    insertion   paste a sprite and leave it for some steps: attention there with it and without, and KL(π ‖ π')
    masking     cover what attention is on, or a region of the same shape elsewhere: KL(π ‖ π') of both

Both runs see the same frames, rewards and actions otherwise, and begin with the same memory, so nothing but the change
explains a difference.
Paper: attention-augmented agent, section 4 (objects inserted into the frames).
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor
from torch.nn import functional as F

from seqloom.rl.unroll import Seen
from seqloom.systems.attention_agent.attention_facts import attended, cells, shares
from seqloom.systems.attention_agent.model import AgentOutput, AgentState, AttentionAgent

FACTOR = 3.0
"""How many times as much attention counts as risen."""

Sprite = UInt8[Tensor, "y x 3"]


class Insertion(NamedTuple):
    """What a sprite did.

    Attributes:
        mass: share of attention on the sprite's cells, by step and query.
        mass_before: the same without the sprite.
        uniform: the share that a uniform map would have there.
        kl: of the policy without the sprite from that with it, in nats, by step.
    """

    mass: Float[Tensor, "T N"]
    mass_before: Float[Tensor, "T N"]
    uniform: float
    kl: Float[Tensor, "T"]

    @property
    def rise(self) -> float:
        """How many times as much attention lay there, over all steps and queries."""
        return float(self.mass.mean() / self.mass_before.mean().clamp(min=1e-30))

    @property
    def risen(self) -> bool:
        """Enough of a rise, and to more than the share of anyone's place: many times nothing is still nothing."""
        return self.rise >= FACTOR and float(self.mass.mean()) >= self.uniform


@torch.no_grad()
def insert(model: AttentionAgent, seen: Seen, state: AgentState, sprite: Sprite, row: int, column: int) -> Insertion:
    """
    Args:
        seen: steps T of one environment, in each of which the sprite is pasted at the same place.
        state: before the first of them.
        sprite: lies wholly within the frame.
    """
    height, width = sprite.shape[:2]
    frames = seen.frames.clone()
    assert row + height <= frames.shape[2]
    assert column + width <= frames.shape[3]
    frames[:, :, row : row + height, column : column + width] = sprite.to(frames.device)
    without, with_it = model(seen, state, look=True), model(seen._replace(frames=frames), state, look=True)
    mask = torch.zeros(frames.shape[2:4], dtype=torch.bool)
    mask[row : row + height, column : column + width] = True
    inside = cells(mask, *model.config.image)
    before, mass = (_mass(output, inside) for output in (without, with_it))
    return Insertion(mass, before, float(inside.float().mean()), divergence(without, with_it))


class Masking(NamedTuple):
    """KL of the policy, in nats, when the attended region is covered, and another one like it."""

    attended: float
    other: float


@torch.no_grad()
def mask_attended(
    model: AttentionAgent, seen: Seen, state: AgentState, count: int, draw: torch.Generator
) -> Masking | None:
    """Cover the cells that get most attention, or as many elsewhere: the same shape, moved at random around the image.

    Args:
        seen: one step of one environment.
        count: of cells to cover.
    Returns:
        None where the attended region fills the image, so that there is no other place.
    """
    plain: AgentOutput = model(seen, state, look=True)
    assert plain.glimpses is not None
    region = attended(shares(plain.glimpses.maps[0, 0].cpu()), count)
    rows, columns = region.shape
    if rows * columns < 2 or bool(region.all()):
        return None
    shift = 1 + int(torch.randint(rows * columns - 1, (), generator=draw))
    moved = region.roll((shift // columns, shift % columns), (0, 1))
    found = []
    for cover in (region, moved):
        covered = seen._replace(frames=covered_frames(seen.frames, cover))
        found.append(float(divergence(plain, model(covered, state))))
    return Masking(*found)


def covered_frames(frames: UInt8[Tensor, "T B Y X 3"], region: Bool[Tensor, "y x"]) -> UInt8[Tensor, "T B Y X 3"]:
    """Frames whose pixels in some cells have the frame's most usual colour."""
    size = frames.shape[2:4]
    pixels = F.interpolate(region[None, None].float(), tuple(size), mode="nearest-exact")[0, 0] > 0
    plain = frames.flatten(2, 3).mode(2).values
    return torch.where(pixels[..., None].to(frames.device), plain[:, :, None, None], frames)


def divergence(one: AgentOutput, other: AgentOutput) -> Float[Tensor, "T"]:
    """KL of the policy of one from that of the other, in nats; of one environment."""
    log_p, log_q = (output.logits[:, 0].float().log_softmax(-1).cpu() for output in (one, other))
    return (log_p.exp() * (log_p - log_q)).sum(-1).clamp(min=0)


def cut(frame: UInt8[Tensor, "Y X 3"], mask: Bool[Tensor, "Y X"]) -> Sprite:
    """The smallest rectangle of a frame that holds an object."""
    rows, columns = (mask.any(axis).nonzero()[:, 0] for axis in (1, 0))
    return frame[int(rows[0]) : int(rows[-1]) + 1, int(columns[0]) : int(columns[-1]) + 1].clone()


def place_for(sprite: Sprite, taken: Bool[Tensor, "Y X"], draw: torch.Generator) -> tuple[int, int] | None:
    """A random place at which a sprite covers no object, if there is one."""
    height, width = sprite.shape[:2]
    if height > taken.shape[0] or width > taken.shape[1]:
        return None
    blocked = F.max_pool2d(taken[None, None].float(), (height, width), 1)[0, 0] > 0
    free = (~blocked).nonzero()
    if not len(free):
        return None
    row, column = free[int(torch.randint(len(free), (), generator=draw))].tolist()
    return row, column


def _mass(output: AgentOutput, inside: Bool[Tensor, "Y X"]) -> Float[Tensor, "T N"]:
    assert output.glimpses is not None
    return (shares(output.glimpses.maps[:, 0].cpu()) * inside).sum((-2, -1))
