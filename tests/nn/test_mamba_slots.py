"""Slots of Mamba layers: the bits of a row that was alone, never guessed, and never cut into pieces."""

import random
from collections.abc import Iterator, Sequence
from typing import get_args

import pytest
import torch
from torch import Tensor

from seqloom.nn.mamba2 import Mamba2
from seqloom.nn.mamba_slots import MambaSlots
from seqloom.nn.narrow import Narrow, widen
from seqloom.nn.norm import RMSNorm
from seqloom.nn.state_formats import SsmFormat, StateFormats
from seqloom.nn.step import few_tokens
from seqloom.ops.kernels import invariant
from seqloom.ops.native.build import why_not
from seqloom.ops.native.call import FLAG, kernel
from tiny_models import excite

FORMATS = get_args(SsmFormat)
CASES = [*(("native", format) for format in FORMATS), ("torch", "fp32")]
ROWS, AHEAD, LENGTH = 4, 3, 36


@pytest.fixture(autouse=True, params=["native", "torch"])
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    if request.param == "native" and (reason := why_not()):
        pytest.skip(reason)
    monkeypatch.setenv("SEQLOOM_KERNELS", "" if request.param == "native" else "torch")
    if why_not() is None:
        kernel("poison_scratch", FLAG)(1)
    with torch.inference_mode(), invariant():
        yield request.param
    if why_not() is None:
        kernel("poison_scratch", FLAG)(0)


def mixer_of(heads: int = 4, head_width: int = 6, state_width: int = 13, groups: int = 2) -> Mamba2:
    """Sizes that fill neither vectors nor the four rows that a kernel takes at a time."""
    torch.manual_seed(0)
    return excite(Mamba2(24, heads, head_width, state_width, groups, conv_width=4, chunk=16, eps=1e-5)).eval()


def cleared(store: MambaSlots) -> MambaSlots:
    for row in range(len(store.window)):
        store.clear(row)
    return store


class Mixing:
    """What mixes tokens, fed with given projections of ROWS sequences; nothing outside the memory can differ."""

    def __init__(self, ssm: SsmFormat = "fp32", dtype: torch.dtype = torch.float32, **sizes: int) -> None:
        self.mixer = mixer_of(**sizes)
        generator = torch.Generator().manual_seed(3)
        all_of = self.mixer.conv_channels + self.mixer.heads
        self._projected = torch.randn(ROWS, LENGTH, all_of, generator=generator).to(dtype)
        self.formats, self._dtype = StateFormats(ssm=ssm, seed=5), dtype

    def store(self, rows: int = ROWS) -> MambaSlots:
        return cleared(self.mixer.new_store(rows, self._dtype, self.formats, "layers.3", AHEAD))

    def __call__(
        self,
        store: MambaSlots,
        first: int,
        sequences: Sequence[int],
        places: Sequence[Sequence[int]],
        guessed: bool = False,
    ) -> Tensor:
        """Tokens `places[i]` of `sequences[i]` for row first + i; a place below zero is a wrong token."""
        picked = [self._projected[s, list(p)] for s, p in zip(sequences, places, strict=True)]
        xbc, dt = torch.stack(picked).split([self.mixer.conv_channels, self.mixer.heads], -1)
        m = self.mixer
        view = store.rows(first, len(sequences), guessed, AHEAD)
        return view.mix(xbc, dt, m.conv1d.weight[:, 0], m.conv1d.bias, m.dt_bias, m.A_log, m.D)

    def alone(self, sequence: int, length: int = LENGTH) -> tuple[Tensor, MambaSlots]:
        """One token after the other, in a store of its own."""
        store = self.store(1)
        return torch.cat([self(store, 0, [sequence], [[t]]) for t in range(length)], 1)[0], store


def state_of(store: MambaSlots, row: int) -> Tensor:
    scales = None if store.scales is None else store.scales[row : row + 1]
    return widen(Narrow(store.codes[row : row + 1], scales))[0]


@pytest.mark.parametrize(("form", "format"), CASES, indirect=["form"])
def test_guesses_change_no_bit(format: SsmFormat) -> None:
    """Whatever was guessed, however many of it were right in each row, and whatever came between."""
    mix, chance = Mixing(format), random.Random(1)
    expected = [mix.alone(sequence) for sequence in range(ROWS)]
    store, seen = mix.store(), [0] * ROWS

    def heard(y: Tensor, rows: Sequence[int], counts: Sequence[int]) -> None:
        for row, count, mine in zip(rows, counts, y, strict=True):
            assert torch.equal(mine[:count], expected[row][0][seen[row] : seen[row] + count])
            seen[row] += count

    for row, length in enumerate((1, 5, 9, 3)):  # pieces of prompts
        heard(mix(store, row, [row], [range(length)]), [row], [length])
    acceptances = [[1, 1 + AHEAD, 2, 1], [1 + AHEAD] * ROWS, [2, 1, 1, 3], [3, 2, 1 + AHEAD, 1]]
    for step, accepted in enumerate(acceptances):
        places = [
            [*range(start, start + count), *(-1 - chance.randrange(9) for _ in range(1 + AHEAD - count))]
            for start, count in zip(seen, accepted, strict=True)
        ]
        heard(mix(store, 0, range(ROWS), places, guessed=True), range(ROWS), accepted)
        store.keep(0, accepted)
        if step == 1:  # some rows go on without guesses, by one token and by more
            heard(mix(store, 1, [1, 2], [[seen[1]], [seen[2]]]), [1, 2], [1, 1])
            heard(mix(store, 3, [3], [range(seen[3], seen[3] + 6)]), [3], [6])
        if step == 2:
            for _ in range(2):  # a call that guessed for nothing
                heard(mix(store, 0, [0, 1], [[seen[0]], [seen[1]]], guessed=True), [0, 1], [1, 1])
                store.keep(0, [1, 1])
    heard(mix(store, 0, range(ROWS), [[place] for place in seen]), range(ROWS), [1] * ROWS)
    for row in range(ROWS):
        _, alone = mix.alone(row, seen[row])
        assert torch.equal(state_of(store, row), state_of(alone, 0))
        assert torch.equal(store.window[row, :3], alone.window[0, :3])
        assert int(store.positions[row]) == seen[row]


@pytest.mark.parametrize(("form", "format"), CASES[:-1], indirect=["form"])
def test_pieces_and_neighbours_change_no_bit(format: SsmFormat) -> None:
    mix = Mixing(format)
    expected = torch.stack([mix.alone(sequence)[0] for sequence in range(ROWS)])
    store, start = mix.store(), 0
    for tokens in (17, 1, 2, 9, 7):
        y = mix(store, 0, range(ROWS), [range(start, start + tokens)] * ROWS)
        assert torch.equal(y, expected[:, start : start + tokens])
        start += tokens


def test_bf16_activations_change_no_bit() -> None:
    mix = Mixing(dtype=torch.bfloat16)
    expected, _ = mix.alone(0, 20)
    store = mix.store()
    assert torch.equal(mix(store, 2, [0], [range(12)])[0], expected[:12])
    assert torch.equal(mix(store, 2, [0], [[12, 13, -1, -2]], guessed=True)[0, :2], expected[12:14])
    store.keep(2, [2])
    assert torch.equal(mix(store, 2, [0], [range(14, 20)])[0], expected[14:])


def test_rows_are_moved_saved_loaded_and_cleared() -> None:
    mix = Mixing("int8_sr")
    expected = [mix.alone(sequence, 20)[0] for sequence in range(2)]
    store = mix.store()
    mix(store, 0, [0, 1], [range(5), range(5)])
    mix(store, 0, [0, 1], [[5, 6, 7, -1], [5, 6, -1, -2]], guessed=True)
    store.keep(0, [3, 2])
    saved = store.save(0)
    assert saved.pending == 2
    store.move(1, 3)
    store.clear(1)
    assert torch.equal(mix(store, 1, [0], [range(4)])[0], expected[0][:4])
    assert torch.equal(mix(store, 3, [1], [range(7, 20)])[0], expected[1][7:])
    for row in (0, 2):
        mix(store, row, [1], [range(9)])
        store.load(row, saved)
        assert torch.equal(mix(store, row, [0], [range(8, 20)])[0], expected[0][8:])


@pytest.mark.parametrize("form", ["native"], indirect=True)
def test_a_step_of_the_whole_layer_has_the_bits_of_its_parts() -> None:
    mixer, norm = mixer_of(), excite(RMSNorm(24, 1e-5))
    x = torch.randn(3, 9, 24, generator=torch.Generator().manual_seed(1))
    one, other = (cleared(mixer.new_store(3, torch.float32, StateFormats(), "", AHEAD)) for _ in range(2))
    start = 0
    for tokens, guessed in ((1, False), (4, True), (3, True), (1, False)):
        piece = x[:, start : start + tokens].contiguous()
        y = few_tokens(norm, mixer, piece, one.rows(0, 3, guessed=guessed))
        assert y is not None
        assert torch.equal(y, piece + mixer(norm(piece), None, other.rows(0, 3, guessed=guessed)))
        if guessed:
            for store in (one, other):
                store.keep(0, [1, 2, 3])
        start += tokens
    assert torch.equal(one.codes, other.codes)
    assert torch.equal(one.window, other.window)


def test_bytes_are_those_of_all_slots() -> None:
    store = Mixing("int8").store()
    states = 4 * 6 * (13 + 4)
    assert store.nbytes == ROWS * (states + 4 * ((3 + AHEAD) * (24 + 2 * 26) + AHEAD * 4) + 2 * 8)
