from typing import Any

import numpy as np
import pytest
import torch

from seqloom.numerics.elements import (
    E2M1,
    E4M3,
    E5M2,
    ELEMENTS,
    Element,
    decode,
    e8m0_ceil,
    e8m0_floor,
    e8m0_value,
    encode,
    round_nearest,
    round_stochastic,
)

TORCH = {"e4m3": torch.float8_e4m3fn, "e5m2": torch.float8_e5m2}
ALL = pytest.mark.parametrize("element", ELEMENTS.values(), ids=ELEMENTS)


def patterns(count: int) -> torch.Tensor:
    """Random FP32 bit patterns of every kind, half of them in the range of small formats, and the ties of E4M3."""
    random = torch.Generator().manual_seed(0)
    anything = torch.randint(-(2**31), 2**31, (count,), generator=random).int().view(torch.float32)
    exponents = torch.randint(-20, 18, (count,), generator=random)
    moderate = torch.randint(-(2**24), 2**24, (count,), generator=random) * 2.0 ** (exponents - 24)
    grid = decode(torch.arange(256, dtype=torch.uint8), E4M3)
    ties = ((grid[1:] + grid[:-1]) / 2)[:254]
    special = torch.tensor([0.0, -0.0, torch.inf, -torch.inf, torch.nan, 464.0, 61440.0, 1e-45])
    return torch.cat((anything, moderate, ties, -ties, ties.nextafter(ties + 1), grid, special))


def outside(element: Element, x: torch.Tensor) -> np.ndarray[Any, Any]:
    """Codes of ml_dtypes, after the clamp that our casts include."""
    ml_dtypes = pytest.importorskip("ml_dtypes")
    kind = {"e2m1": "float4_e2m1fn", "e4m3": "float8_e4m3fn", "e5m2": "float8_e5m2"}[element.name]
    return x.clamp(-element.largest, element.largest).numpy().astype(getattr(ml_dtypes, kind)).view(np.uint8)


@ALL
def test_the_nearest_codes_are_those_of_ml_dtypes(element: Element):
    x = patterns(300_000)
    x = x[~x.isnan()]  # its NaN of E2M1 is -0, and in E4M3 it keeps the sign
    assert np.array_equal(encode(round_nearest(x, element), element).numpy(), outside(element, x))


@pytest.mark.parametrize("element", [E4M3, E5M2], ids=["e4m3", "e5m2"])
def test_the_nearest_codes_are_those_of_torch(element: Element):
    x = patterns(300_000)
    cast = x.clamp(-element.largest, element.largest).to(TORCH[element.name])
    expected = torch.where(x.isnan(), 0x7F, cast.view(torch.uint8))  # some of its kernels keep the sign of NaN
    assert torch.equal(encode(round_nearest(x, element), element), expected)
    assert cast.float()[x.isnan()].isnan().all()
    codes = torch.arange(256, dtype=torch.uint8)
    torch.testing.assert_close(
        decode(codes, element), codes.view(TORCH[element.name]).float(), rtol=0, atol=0, equal_nan=True
    )


@ALL
def test_values_and_codes_are_one_to_one(element: Element):
    codes = torch.arange(2**element.bits, dtype=torch.uint8)
    values = decode(codes, element)
    finite = values.isfinite()
    assert torch.equal(encode(values, element)[finite], codes[finite])
    assert torch.equal(round_nearest(values, element)[finite], values[finite])
    assert values[finite].max() == element.largest == values[element.largest_code]


def test_values_of_e2m1_and_its_rule_for_nan():
    assert decode(torch.arange(16, dtype=torch.uint8), E2M1).tolist() == [
        *(0, 0.5, 1, 1.5, 2, 3, 4, 6),
        *(-0.0, -0.5, -1, -1.5, -2, -3, -4, -6),
    ]
    x = torch.tensor([torch.nan, torch.inf, -torch.inf, -0.0, -0.1])
    for rounded in (round_nearest(x, E2M1), round_stochastic(x, E2M1, torch.zeros(5, dtype=torch.uint8))):
        assert encode(rounded, E2M1).tolist() == [7, 7, 15, 8, 8]


@ALL
def test_eight_random_bits_round_to_a_neighbour_with_the_documented_bias(element: Element):
    positive = decode(torch.arange(element.largest_code + 1, dtype=torch.uint8), element)
    places = torch.linspace(0, 1, 41)[:-1]
    z = (positive[:-1, None] + places * positive.diff()[:, None]).flatten()
    lower, upper = (each.repeat_interleave(40) for each in (positive[:-1], positive[1:]))
    random = torch.arange(256, dtype=torch.uint8)
    q = round_stochastic(z.expand(256, -1), element, random[:, None].expand(256, len(z)))
    assert ((q == lower) | (q == upper)).all()
    bias = (q.double().mean(0) - z) / (upper - lower)
    assert bias.max() <= 1e-6  # z itself is rounded to FP32
    assert bias.min() > -1 / 256
    assert bias.min() < -1 / 512  # so the bound is not idle
    assert torch.equal(
        round_stochastic(-z, element, random[:40].repeat(len(z) // 40)).signbit(), torch.ones_like(z) > 0
    )


@ALL
def test_24_random_bits_are_unbiased(element: Element):
    z = torch.linspace(0, element.largest, 99)[1:-1]
    random = torch.randint(2**24, (4096, len(z)), generator=torch.Generator().manual_seed(1))
    q = round_stochastic(z.expand(4096, -1), element, random, 24).double()
    deviation = (q.mean(0) - z).abs()
    assert (deviation <= 4 * q.std(0) / 64 + 1e-6 * z).all()


def test_e8m0_values_are_those_of_torch():
    codes = torch.arange(256, dtype=torch.uint8)
    torch.testing.assert_close(
        e8m0_value(codes), codes.view(torch.float8_e8m0fnu).float(), rtol=0, atol=0, equal_nan=True
    )


@ALL
def test_the_ceiling_exponent_is_the_smallest_without_saturation(element: Element):
    amax = patterns(50_000).abs()
    amax = torch.cat((amax[amax.isfinite() & (amax > 0)], element.largest * 2.0 ** torch.arange(-100, 100)))
    codes = e8m0_ceil(amax, element.largest)
    ratio = amax * torch.tensor(1 / element.largest)
    assert (ratio <= e8m0_value(codes)).all()
    below = codes > 0
    assert (ratio > e8m0_value(codes) / 2)[below].all()
    assert e8m0_ceil(torch.tensor([0.0, torch.inf, torch.nan]), element.largest).tolist() == [0, 254, 255]


@ALL
def test_the_floor_exponent_is_that_of_ocp(element: Element):
    amax = patterns(50_000).abs()
    amax = amax[amax.isfinite() & (amax > 0)]
    exponent = torch.frexp(amax).exponent - 1 - {"e2m1": 2, "e4m3": 8, "e5m2": 15}[element.name]
    assert torch.equal(e8m0_floor(amax, element).int(), exponent.clamp(min=-127).int() + 127)
    assert e8m0_floor(torch.tensor([0.0, torch.inf, torch.nan]), element)[0] == 0
