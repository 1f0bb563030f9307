"""Narrow states between tokens: every bit of the portable rounding, in whole vectors and in what is left of them."""

import pytest
import torch

from native_checks import guarded
from seqloom.nn.narrow import Narrow, NarrowFormat, narrow, rounding_noise, stochastic, widen
from seqloom.ops.native.mamba_rows import FORMATS, Remembered, mamba_mix, slots

ROWS, HEADS, WIDTH, GROUPS, AHEAD = 2, 4, 6, 2, 3
KEY = 0x9876543210ABCDEF
TOKENS = (0, 2**32 + 5)
"""That the rows have seen before."""


@pytest.mark.parametrize("format", FORMATS[1:])
@pytest.mark.parametrize("state_width", [13, 40, 150])
def test_states_are_rounded_as_the_portable_form_does(format: NarrowFormat, state_width: int) -> None:
    draw = torch.Generator().manual_seed(0)
    channels = HEADS * WIDTH + 2 * GROUPS * state_width
    shapes = ((channels, 4), (channels,), (HEADS,), (HEADS,), (HEADS,))
    taps, bias, dt_bias, a_log, skip = (torch.randn(*shape, generator=draw) for shape in shapes)
    positions = torch.tensor(TOKENS)

    def rounded(ssm: torch.Tensor) -> Narrow:
        noise = rounding_noise(KEY, positions, ssm.shape[1:], ssm.device) if stochastic(format) else None
        return narrow(ssm, format, noise)

    states = [torch.randn(ROWS, HEADS, WIDTH, state_width, generator=draw) for _ in range(2)]
    wide, stored = (
        Remembered(
            torch.zeros(ROWS, 3 + AHEAD, channels),
            torch.zeros(ROWS, AHEAD, HEADS),
            torch.zeros(ROWS, dtype=torch.int64),
            positions.clone(),
            *(rounded(state) if kind != "fp32" else (state, None)),
        )
        for kind, state in zip(("fp32", format), states, strict=True)
    )
    for scale in (1.0, 1e-7, 3e4, 1e-3, 1.0):  # plain, subnormal, and more than FP16 holds
        xbc, dt = (
            torch.randn(ROWS, 1, channels, generator=draw) * scale**0.5,
            torch.randn(ROWS, 1, HEADS, generator=draw),
        )
        start = rounded(states[0] * scale)
        stored.codes[:] = start.codes
        if stored.scales is not None and start.scales is not None:
            stored.scales[:] = start.scales
        wide.codes[:] = widen(start)
        with guarded():
            y = mamba_mix(xbc, dt, taps, bias, dt_bias, a_log, skip, slots(stored, GROUPS, format, KEY), 0, False)
            exact = mamba_mix(xbc, dt, taps, bias, dt_bias, a_log, skip, slots(wide, GROUPS, "fp32", KEY), 0, False)
        assert torch.equal(y, exact)
        positions += 1
        assert torch.equal(stored.positions, positions)
        codes, scales = rounded(wide.codes)
        assert torch.equal(codes.float(), stored.codes.float())
        assert (scales is None) == (stored.scales is None)
        if scales is not None and stored.scales is not None:
            assert torch.equal(scales, stored.scales)
