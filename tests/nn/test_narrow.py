"""Narrow SSM states: casts against libraries that nobody here wrote, means of stochastic rounding by enumeration."""

from typing import get_args

import numpy as np
import pytest
import torch
from torch import Tensor

from seqloom.nn.narrow import BLOCK, NarrowFormat, narrow, rounding_noise, stochastic, widen

FORMATS = get_args(NarrowFormat)
STOCHASTIC = [each for each in FORMATS if stochastic(each)]


def states(*shape: int, seed: int = 0) -> Tensor:
    """Magnitudes over six decades."""
    random = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=random) * 10 ** (3 * torch.randn(shape, generator=random).clamp(-1, 1))


def noise(*shape: int) -> Tensor:
    return torch.randint(2**16, shape, generator=torch.Generator().manual_seed(1))


def stored(x: Tensor, format: NarrowFormat) -> Tensor:
    return widen(narrow(x, format, noise(*x.shape) if stochastic(format) else None))


def test_nearest_is_the_cast_of_ml_dtypes() -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    x = states(2, 3, 4, BLOCK)
    for format, dtype in (("bf16", ml_dtypes.bfloat16), ("fp16", "float16")):
        assert torch.equal(stored(x, format), torch.from_numpy(x.numpy().astype(dtype).astype("float32")))
    scale = x.abs().amax(-1, keepdim=True) / 448
    cast = (x / scale).numpy().astype(ml_dtypes.float8_e4m3fn).astype("float32")
    assert torch.equal(stored(x, "fp8"), torch.from_numpy(cast) * scale)


def test_integers_are_those_of_numpy() -> None:
    x = states(2, 3, 4, BLOCK)
    scales = x.abs().amax(-1, keepdim=True).numpy() / np.float32(127)
    ours = narrow(x, "int8")
    assert np.array_equal(ours.codes.numpy(), np.rint(x.numpy() / scales).astype("int8"))
    assert np.array_equal(ours.scales.numpy(), scales)


@pytest.mark.parametrize("format", STOCHASTIC)
def test_the_mean_of_a_rounded_number_is_the_number(format: NarrowFormat) -> None:
    """Over all 2^16 noises, each as often as the others."""
    for value in (0.3, -0.7001, 1e-3, -0.9999):
        x = torch.full((1, 1, 2**16, 2), value)
        x[..., 1] = 1.0  # the scale of every block
        every = torch.arange(2**16)[None, None, :, None].expand(x.shape)
        results = widen(narrow(x, format, every))[..., 0]
        below, above = results.min().double(), results.max().double()
        assert below <= x[0, 0, 0, 0] <= above
        assert len(results.unique()) == 2
        assert results.double().mean() == pytest.approx(float(x[0, 0, 0, 0]), abs=float(above - below) * 2e-5)


@pytest.mark.parametrize("format", FORMATS)
def test_nothing_moves_further_than_a_step(format: NarrowFormat) -> None:
    x = states(2, 3, 4, 200)
    error = (stored(x, format) - x).abs()
    blocks = torch.cat([x[..., :BLOCK].abs().amax(-1, keepdim=True).expand(-1, -1, -1, BLOCK),
                        x[..., BLOCK:].abs().amax(-1, keepdim=True).expand(-1, -1, -1, 72)], -1)  # fmt: skip
    halves = 1 if stochastic(format) else 0.5
    step = {
        "bf16": x.abs() * 2**-7, "fp16": x.abs().clamp(min=2**-14) * 2**-10,
        "int8": blocks / 127, "fp8": x.abs().clamp(min=0) / 8 + blocks / 448 * 2**-9,
    }[format.removesuffix("_sr")]  # fmt: skip
    assert (error <= 1.0001 * halves * step).all()


@pytest.mark.parametrize("format", FORMATS)
def test_zeros_stay_zero_and_what_is_not_a_number_shows(format: NarrowFormat) -> None:
    x = torch.zeros(1, 1, 3, 5)
    x[0, 0, 1] = 1e-45
    x[0, 0, 2, 3] = torch.nan
    back = stored(x, format)
    assert back[0, 0, 0].abs().max() == 0
    assert torch.isfinite(back[0, 0, 1]).all()
    assert back[0, 0, 2, 3].isnan()


@pytest.mark.parametrize(
    ("format", "width"), [("fp16", 16), ("fp16_sr", 16), ("int8", 9), ("int8_sr", 9), ("fp8_sr", 9)]
)
def test_bits_per_element(format: NarrowFormat, width: int) -> None:
    codes, scales = narrow(torch.zeros(1, 2, 3, 32), format, noise(1, 2, 3, 32) if stochastic(format) else None)
    assert 8 * (codes.nbytes + (scales.nbytes if scales is not None else 0)) == 2 * 3 * 32 * width


def test_what_is_stored_is_stored_again_as_it_is() -> None:
    for format in ("bf16", "fp16", "fp16_sr"):
        once = stored(states(1, 2, 3, 64), format)
        assert torch.equal(stored(once, format), once)


def test_noise_depends_on_key_position_and_element_alone() -> None:
    shape, cpu = torch.Size((2, 3, 5)), torch.device("cpu")
    several = rounding_noise(7, torch.tensor([4, 9, 4, 2**33]), shape, cpu)
    alone = [rounding_noise(7, torch.tensor([place]), shape, cpu)[0] for place in (4, 9, 4, 2**33)]
    assert torch.equal(several, torch.stack(alone))
    assert torch.equal(several[0], several[2])
    others = [several[1], several[3], rounding_noise(8, torch.tensor([4]), shape, cpu)[0]]
    assert all((each != several[0]).float().mean() > 0.9 for each in others)
    assert rounding_noise(7, torch.zeros(0, dtype=torch.int64), shape, cpu).shape == (0, 2, 3, 5)


def test_noise_is_uniform() -> None:
    found = rounding_noise(3, torch.arange(16), torch.Size((16, 16, 16)), torch.device("cpu"))
    counts = torch.bincount(found.flatten() >> 10, minlength=64)
    expected = found.numel() / 64
    assert ((counts - expected) ** 2 / expected).sum() < 110  # chi-squared of 63 degrees, p = 2e-4
    bits = (found.flatten()[:, None] >> torch.arange(16)) & 1
    assert (bits.float().mean(0) - 0.5).abs().max() < 4 * 0.5 / found.numel() ** 0.5


@pytest.mark.parametrize("kind", ["fp16", "int8", "fp8"])
def test_a_slowly_decaying_state_stalls_unless_rounding_is_stochastic(kind: str) -> None:
    decay, steps = 1 - 3e-4, 120
    ends = {}
    for format in (kind, f"{kind}_sr"):
        x = torch.full((1, 1, 64, 32), 0.7)
        x[..., 0] = 1.0
        for step in range(steps):
            x = stored_at(decay * x + (1 - decay) * torch.eye(1, 32), format, step)
        ends[format] = float(x[..., 1:].mean())
    truth = 0.7 * decay**steps
    assert ends[f"{kind}_sr"] == pytest.approx(truth, abs=4e-3)
    assert ends[kind] > truth + 0.015


def stored_at(x: Tensor, format: NarrowFormat, step: int) -> Tensor:
    places = torch.tensor([step])
    random = rounding_noise(5, places, x.shape[1:], x.device) if stochastic(format) else None
    return widen(narrow(x, format, random))
