"""Pictures of a played step: the frame enlarged by a whole factor, attention over it in a colour for each query.

    a_n = clip((A^n - u) / max(max A^n - u, 2u), 0, 1)         u: what a uniform map has everywhere
    a = 1 - Π_n (1 - 0.8 a_n)      pixel' = (1 - a) pixel + a Σ_n a_n colour_n / Σ_n a_n

So a query that prefers nothing is not seen. Maps are brought to the frame's size bilinearly. Beside the frame, if asked
for, a panel has a row for each query (a bar of its entropy, its map, and what content and place alone would look at),
and the value over time. Paper: attention-augmented agent, section 4 (overlay videos).
"""

from collections.abc import Iterator

import numpy as np
import torch
from torch.nn import functional as F

from seqloom.rl.environment import Frame
from seqloom.systems.attention_agent.play import Maps, Picture, Recording

COLOURS = ((255, 200, 40), (60, 200, 255), (255, 90, 170), (110, 235, 120), (190, 140, 255), (255, 140, 60))
"""Of the queries, in their order; more begin again."""
HEIGHT = 288
"""Pixels that a frame should at least be enlarged to."""
STRENGTH = 0.8
"""Of the colours where attention is greatest."""
GAP, TILE, BAR, CURVE = 6, 56, 8, 48
DARK, PALE, WHITE = (18, 20, 24), (70, 76, 84), (230, 233, 237)

_GLYPHS = {
    "A": "75755", "E": "74747", "H": "55755", "L": "44447", "M": "57755", "P": "75744", "R": "75765", "T": "72222",
    "U": "55557", "V": "55552", "W": "55577",
}  # fmt: skip
"""Letters of 3 x 5 pixels, an octal digit for each row from the top."""


def scale_of(frame: Frame) -> int:
    """The whole factor by which frames of this size are enlarged."""
    factor: int = -(-HEIGHT // frame.shape[0])
    return factor


def enlarged(frame: Frame, factor: int) -> Frame:
    return frame.repeat(factor, 0).repeat(factor, 1)


def overlaid(frame: Frame, maps: Maps) -> Frame:
    """A frame with attention over it.

    Args:
        maps: shares of attention, N Y X.
    """
    weights = preferred(maps, *frame.shape[:2])
    colours = np.array([colour_of(n) for n in range(len(maps))], dtype=np.float32)
    tint = np.einsum("nyx,nc->yxc", weights, colours) / np.maximum(weights.sum(0), 1e-6)[..., None]
    opacity = (1 - np.prod(1 - STRENGTH * weights, axis=0))[..., None]
    mixed: Frame = ((1 - opacity) * frame + opacity * tint).round().astype(np.uint8)
    return mixed


def preferred(maps: Maps, rows: int, columns: int) -> Maps:
    """How much more than a uniform map's share lies at a place, 0 to 1, brought to another size bilinearly.

    Args:
        maps: shares, N Y X.
    """
    uniform = 1 / (maps.shape[1] * maps.shape[2])
    scale = np.maximum(maps.max((1, 2), keepdims=True) - uniform, 2 * uniform)
    excess = torch.from_numpy((maps - uniform) / scale)
    large = F.interpolate(excess[None], (rows, columns), mode="bilinear")[0]
    grown: Maps = large.clamp(0, 1).numpy()
    return grown


def colour_of(query: int) -> tuple[int, int, int]:
    return COLOURS[query % len(COLOURS)]


def video(recording: Recording, attention: bool) -> Iterator[Frame]:
    """Pictures of an episode, all of one size.

    Args:
        attention: with maps over the frame and a panel at its side; the agent must have attention.
    """
    if not recording.pictures:
        return
    factor = scale_of(recording.pictures[0].frame)
    for picture in recording.pictures:
        frame = enlarged(picture.frame, factor)
        if attention:
            assert picture.maps is not None
            frame = overlaid(frame, picture.maps)
            frame = np.concatenate([frame, panel(recording, picture, len(frame))], axis=1)
        yield frame


def panel(recording: Recording, picture: Picture, height: int) -> Frame:
    """What belongs to the step beside its frame; cut off or filled up to a height."""
    assert picture.maps is not None
    assert picture.what is not None
    assert picture.where is not None
    queries = len(picture.maps)
    width = 5 * GAP + BAR + 3 * TILE
    tile = min(TILE, max(8, (height - CURVE - 3 * GAP - 24) // queries - GAP))
    image = np.full((height, width, 3), DARK, dtype=np.uint8)
    lefts = [2 * GAP + BAR + n * (TILE + GAP) for n in range(3)]
    for left, word in zip(lefts, ("MAP", "WHAT", "WHERE"), strict=True):
        _write(image, GAP, left, word)
    largest = np.log(picture.maps[0].size)
    for n in range(queries):
        top = 2 * GAP + 10 + n * (tile + GAP)
        _fill(image, top, GAP, tile, BAR, PALE)
        filled = round(tile * min(1.0, recording.facts[picture.step].entropy[n] / max(largest, 1e-9)))
        _fill(image, top + tile - filled, GAP, filled, BAR, colour_of(n))
        for left, part in zip(lefts, (picture.maps, picture.what, picture.where), strict=True):
            bright = preferred(part[n : n + 1], tile, TILE)[0][..., None]
            _put(image, top, left, (bright * colour_of(n)).round().astype(np.uint8))
    _curve(image, recording.values, picture.step, height - CURVE - GAP)
    return image


def _curve(image: Frame, values: list[float], step: int, top: int) -> None:
    """The value over the episode as columns of pixels, and the present as a line."""
    width = image.shape[1] - 2 * GAP
    _write(image, top - 12, GAP, "VALUE")
    _fill(image, top, GAP, CURVE, width, PALE)
    low, high = min(values), max(values)
    for x in range(width):
        value = values[x * len(values) // width]
        y = round((CURVE - 2) * (1 - (value - low) / max(high - low, 1e-9)))
        _fill(image, top + y, GAP + x, 2, 1, WHITE)
    _fill(image, top, GAP + step * width // len(values), CURVE, 1, COLOURS[0])


def _write(image: Frame, top: int, left: int, word: str) -> None:
    for place, letter in enumerate(word):
        rows = [[int(bit) for bit in f"{int(digit):03b}"] for digit in _GLYPHS[letter]]
        mask = np.array(rows, dtype=bool).repeat(2, 0).repeat(2, 1)
        area = image[top : top + 10, left + 8 * place : left + 8 * place + 6]
        area[mask[: area.shape[0], : area.shape[1]]] = WHITE


def _fill(image: Frame, top: int, left: int, height: int, width: int, colour: tuple[int, int, int]) -> None:
    image[max(0, top) : max(0, top + height), left : left + width] = colour


def _put(image: Frame, top: int, left: int, part: Frame) -> None:
    area = image[top : top + part.shape[0], left : left + part.shape[1]]
    area[:] = part[: area.shape[0], : area.shape[1]]
