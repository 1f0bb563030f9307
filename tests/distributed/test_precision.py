"""Scales in few bits do not depend on the grid: what is cut over ranks has the largest magnitude of all of them."""

from dataclasses import replace
from pathlib import Path

import pytest
from distributed.conftest import Go
from distributed.test_modes import result, worst
from distributed.test_resume import everything, finish, stop

from seqloom.numerics.precision import PrecisionConfig
from seqloom.systems.hybrid_lm.config import Run


def of(run: Run, recipe: str) -> Run:
    """With layers of every kind quantized."""
    precision = PrecisionConfig(recipe=recipe, keep_first=0, keep_last=0)
    return replace(run, precision=precision)


@pytest.mark.full
def test_scales_agree_over_tensor_ranks(go: Go, run: Run, tmp_path: Path) -> None:
    here, changes = of(run, "mor_tensor"), (("steps", 1),)
    alone = result(go, tmp_path / "alone", "alone", of=here, changes=changes)
    spread = result(go, tmp_path / "spread", "tensor 2", of=here, changes=changes)
    one, other = (next(line for line in found.log if line["kind"] == "train") for found in (alone, spread))
    assert other["loss"] == pytest.approx(one["loss"], rel=1e-3)
    assert worst(alone.gradients, spread.gradients) < 0.25  # partial sums are rounded to BF16, and flip codes
    assert other["fp8_share"] == one["fp8_share"]


@pytest.mark.full
def test_dealt_out_by_rows_it_resumes_bit_for_bit(go: Go, run: Run, tmp_path: Path) -> None:
    here, whole, broken = of(run, "nvfp4"), tmp_path / "whole", tmp_path / "broken"
    finish(go, whole, 2, of=here)
    stop(go, broken, 2, 2, of=here)
    finish(go, broken, 2, of=here)
    assert everything(broken) == everything(whole)


@pytest.mark.full
def test_dealt_experts_multiply_in_few_bits(go: Go, run: Run, tmp_path: Path) -> None:
    result(go, tmp_path / "run", "tensor 2, expert 2", of=of(run, "fp8_nemotron_h"))
