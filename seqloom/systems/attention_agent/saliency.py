"""Perturbation saliency: how much the policy changes when a patch of the frame is blurred.

    x'(i,j) = x (1 - M_ij) + blur(x) M_ij          M_ij: Gaussian around (i, j)
    S(i,j) = ½ ‖π(x) - π(x')‖²                     and the same of the value: ½ (V(x) - V(x'))²

What the agent remembers from before the step stays as it was. Widths and the distance of patches are those of earlier
work on Atari agents, given for frames of 80 pixels and scaled to others: σ 5, blur σ 3, a patch every 5 pixels.
Paper: attention-augmented agent, section 4 (comparison with perturbation-based saliency).
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from seqloom.rl.unroll import Seen
from seqloom.systems.attention_agent.model import AgentState, AttentionAgent

SIDE, PATCH, BLUR, STRIDE = 80, 5.0, 3.0, 5.0
TOGETHER = 64
"""Blurred frames of one forward pass."""


class Saliency(NamedTuple):
    """Scores by place; places are the middles of equal cells of the frame."""

    policy: Float[Tensor, "Y X"]
    value: Float[Tensor, "Y X"]


@torch.no_grad()
def saliency(model: AttentionAgent, seen: Seen, state: AgentState) -> Saliency:
    """
    Args:
        seen: one step of one environment.
        state: before the step.
    """
    rows, columns = seen.frames.shape[2:4]
    scale = min(rows, columns) / SIDE
    grid = [max(1, math.ceil(size / max(1.0, STRIDE * scale))) for size in (rows, columns)]
    frame = seen.frames[0, 0].float()
    blurred = blur(frame, BLUR * scale)
    masks = _masks(rows, columns, grid, PATCH * scale).to(frame.device)
    before = model(seen, state)
    policy, value = [], []
    for some in masks.split(TOGETHER):
        frames = (frame + (blurred - frame) * some[..., None]).round().to(torch.uint8)
        copies = Seen(frames[None], *(part.expand(1, len(some)) for part in seen[1:]))
        after = model(copies, AgentState(*(part.expand(len(some), *part.shape[1:]) for part in state)))
        policy.append((after.logits[0].softmax(-1) - before.logits[0].softmax(-1)).square().sum(-1) / 2)
        value.append((after.values[0] - before.values[0]).square() / 2)
    return Saliency(*(torch.cat(part).cpu().view(*grid) for part in (policy, value)))


def agreement(scores: Float[Tensor, "Y X"], maps: Float[Tensor, "N y x"]) -> float:
    """Correlation over the image of saliency with the attention of all queries together; 0 if either is flat."""
    wanted = resized(scores, *maps.shape[-2:]).flatten().double()
    parts = [part - part.mean() for part in (wanted, maps.mean(0).flatten().double())]
    size = parts[0].norm() * parts[1].norm()
    return float(parts[0] @ parts[1] / size) if size > 0 else 0.0


def resized(scores: Float[Tensor, "Y X"], rows: int, columns: int) -> Float[Tensor, "y x"]:
    """The same picture in other cells, bilinearly; averaged where it becomes coarser."""
    return F.interpolate(scores[None, None], (rows, columns), mode="bilinear", antialias=True)[0, 0]


def blur(frame: Float[Tensor, "Y X 3"], sigma: float) -> Float[Tensor, "Y X 3"]:
    """With a Gaussian; the edge goes on beyond the frame."""
    reach = max(1, math.ceil(3 * sigma))
    places = torch.arange(-reach, reach + 1, device=frame.device)
    weights = torch.exp(-(places**2) / (2 * sigma**2))
    weights = (weights / weights.sum()).to(frame.dtype)
    image = F.pad(frame.permute(2, 0, 1)[:, None], [reach] * 4, mode="replicate")
    image = F.conv2d(F.conv2d(image, weights[None, None, :, None]), weights[None, None, None, :])
    return image[:, 0].permute(1, 2, 0)


def _masks(rows: int, columns: int, grid: list[int], sigma: float) -> Float[Tensor, "P Y X"]:
    """Gaussians of height 1 around the middles of the grid's cells, row by row."""
    along = []
    for size, count in zip((rows, columns), grid, strict=True):
        middles = (torch.arange(count) + 0.5) * size / count - 0.5
        along.append(torch.exp(-((torch.arange(size) - middles[:, None]) ** 2) / (2 * sigma**2)))
    return torch.einsum("ay,bx->abyx", *along).flatten(0, 1)
