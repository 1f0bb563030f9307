"""The vector functions against FP64 and torch, over every exponent, with the vectors of three kinds of processors.

A width that this processor does not have is made of narrower vectors by the compiler: the shapes of the code are those
of the other processor, the instructions are not.
"""

import ctypes
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

GUARD = 32
WIDTHS = (4, 8, 16)


@pytest.fixture(scope="module", params=WIDTHS, ids=lambda width: f"W{width}")
def simd(probe: Callable[..., ctypes.CDLL], request: pytest.FixtureRequest) -> ctypes.CDLL:
    return probe("simd_probe.cpp", flags=(f"-DSEQLOOM_WIDTH={request.param}",))


def call(simd: ctypes.CDLL, name: str, *arguments: Any) -> None:
    getattr(simd, name)(
        *(ctypes.c_void_p(a.ctypes.data) if isinstance(a, np.ndarray) else ctypes.c_int64(a) for a in arguments)
    )


def apply(simd: ctypes.CDLL, name: str, x: np.ndarray) -> np.ndarray:
    y = np.full_like(x, np.nan)
    call(simd, f"apply_{name}", x, y, len(x))
    return y


def everywhere() -> np.ndarray:
    """Floats of both signs and every exponent, 0, the smallest, the largest, infinities and NaN."""
    bits = np.arange(0, 2**32, 4099, dtype=np.uint64).astype(np.uint32)
    special = np.array(
        [0, -0.0, 1, -1, np.inf, -np.inf, np.nan, 1e-45, -1e-45, 3.4e38, -3.4e38, 88.72284, -87.34, -103.97], np.float32
    )
    return np.concatenate([bits.view(np.float32), special, np.linspace(-110, 110, 400_001, dtype=np.float32)])


def units_off(found: np.ndarray, exact: np.ndarray) -> np.ndarray:
    """Distance from the exact value in units of the last place that FP32 has there; 0 where both are NaN or equal."""
    with np.errstate(over="ignore", invalid="ignore"):
        rounded = exact.astype(np.float32)
        unit = np.spacing(np.minimum(np.abs(rounded), np.finfo(np.float32).max)).astype(np.float64)
        off = np.abs(found.astype(np.float64) - exact) / unit
    off[(found == rounded) | (np.isnan(found) & np.isnan(rounded))] = 0
    return np.nan_to_num(off, nan=np.inf)


EXACT: dict[str, tuple[Callable[[np.ndarray], np.ndarray], float]] = {
    "exp": (np.exp, 1.2),
    "exp_below": (lambda x: np.exp(np.fmax(-np.abs(x), -87) + 0 * np.sign(x)), 21),  # a weight of e^-87 may be rough
    "log": (np.log, 1.5),
    "sigmoid": (lambda x: np.where(x < 0, np.exp(np.minimum(x, 0)), 1) / (1 + np.exp(-np.abs(x))), 2.5),
    "softplus": (lambda x: np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x))), 2.0),
    "sqrt": (np.sqrt, 0.501),
    "abs": (np.abs, 0),
}


@pytest.mark.parametrize("name", EXACT)
def test_functions_are_exact_to_the_last_places_everywhere(simd: ctypes.CDLL, name: str) -> None:
    exact, allowed = EXACT[name]
    if name == "exp_below" and not simd.fuses():
        allowed *= 4
    x = everywhere()
    with np.errstate(all="ignore"):
        off = units_off(apply(simd, name, x), exact(x.astype(np.float64)))
    worst = int(off.argmax())
    assert off[worst] <= allowed, f"{name}({x[worst]!r}) is {off[worst]:.2f} units off"


@pytest.mark.parametrize("name", EXACT)
def test_the_place_in_a_vector_changes_nothing(simd: ctypes.CDLL, name: str) -> None:
    x = everywhere()[::97].copy()
    whole = apply(simd, name, x)
    for length in (1, 3, 5, 17):
        assert np.array_equal(apply(simd, name, x[:length].copy()), whole[:length], equal_nan=True)
    assert np.array_equal(apply(simd, name, x[1:].copy()), whole[1:], equal_nan=True)


def test_width_is_the_one_asked_for(simd: ctypes.CDLL, request: pytest.FixtureRequest) -> None:
    assert f"W{simd.width()}" in request.node.name


def test_bf16_rounds_as_torch_does(simd: ctypes.CDLL) -> None:
    x = np.concatenate([everywhere(), (np.arange(2**16, dtype=np.uint32) << 16 | 0x8000).view(np.float32)])  # ties
    found = np.zeros(len(x), dtype=np.uint16)
    call(simd, "narrow", x, found, len(x))
    mine = torch.from_numpy(found.view(np.int16)).view(torch.bfloat16)
    wanted = torch.from_numpy(x).bfloat16()
    nan = wanted.isnan()
    assert torch.equal(mine.isnan(), nan)
    assert torch.equal(mine.view(torch.int16)[~nan], wanted.view(torch.int16)[~nan])


def test_bf16_widens_exactly(simd: ctypes.CDLL) -> None:
    x = np.arange(2**16, dtype=np.uint16)
    found = np.zeros(len(x), dtype=np.float32)
    call(simd, "widen", x, found, len(x))
    assert np.array_equal(found.view(np.uint32), x.astype(np.uint32) << 16)


@pytest.mark.parametrize(
    ("function", "source", "target"), [("narrow", np.float32, np.uint16), ("widen", np.uint16, np.float32)]
)
def test_tails_touch_nothing_beyond_them(simd: ctypes.CDLL, function: str, source: type, target: type) -> None:
    for length in range(2 * simd.width() + 2):
        x = np.arange(length, dtype=source)
        y = np.full(length + 2 * GUARD, 77, dtype=target)
        call(simd, function, x, y[GUARD:], length)
        assert (y[:GUARD] == 77).all()
        assert (y[GUARD + length :] == 77).all()


def test_lanes_beyond_a_partial_load_are_zero(simd: ctypes.CDLL) -> None:
    width = simd.width()
    x = np.full(width, np.nan, dtype=np.float32)
    for length in range(width):
        x[:length] = 1
        y = np.full(width, np.nan, dtype=np.float32)
        call(simd, "first_lanes", x, length, y)
        assert list(y) == [1] * length + [0] * (width - length)


def test_fma_rounds_once_where_the_processor_can(simd: ctypes.CDLL) -> None:
    if not simd.fuses():
        pytest.skip("it multiplies and adds")
    generator = np.random.default_rng(0)
    a, b = generator.standard_normal((2, 1600)).astype(np.float32)
    c = -(a * b)  # what is left is the rounding of the product
    exact = a.astype(np.float64) * b.astype(np.float64) + c.astype(np.float64)
    call(simd, "apply_fma", a, b, c, len(a))
    assert np.array_equal(c, exact.astype(np.float32))


def test_reductions_over_the_lanes(simd: ctypes.CDLL) -> None:
    simd.sum_of.restype = simd.max_of.restype = ctypes.c_float
    x = np.random.default_rng(0).standard_normal(simd.width()).astype(np.float32)
    pointer = ctypes.c_void_p(x.ctypes.data)
    assert simd.max_of(pointer) == x.max()
    halves = x.copy()
    while len(halves) > 1:
        halves = halves[: len(halves) // 2] + halves[len(halves) // 2 :]
    assert simd.sum_of(pointer) == halves[0]


def test_the_second_is_taken_where_one_is_not_a_number(simd: ctypes.CDLL) -> None:
    a = np.resize(np.array([1, np.nan, 3, -np.inf], dtype=np.float32), simd.width())
    b = np.resize(np.array([2, 5, np.nan, np.inf], dtype=np.float32), simd.width())
    larger, smaller = np.zeros((2, simd.width()), dtype=np.float32)
    call(simd, "larger", a, b, larger, smaller)
    assert np.array_equal(larger[:4], [2, 5, np.nan, np.inf], equal_nan=True)
    assert np.array_equal(smaller[:4], [1, 5, np.nan, -np.inf], equal_nan=True)
