"""NVFP4 bit for bit against published vectors, made by an implementation that shares no code with this one."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from seqloom.numerics.elements import E2M1, E4M3, encode, round_nearest, round_stochastic
from seqloom.numerics.hadamard import DEFAULT_SIGNS, hadamard
from seqloom.numerics.packing import pack
from seqloom.numerics.quantized import quantize, quantize_drawn
from seqloom.numerics.scheme import NVFP4, NVFP4_2D, NVFP4_PTQ

FILE = Path(__file__).parents[3] / "shared" / "vectors" / "nvfp4_vectors.json"
pytestmark = pytest.mark.skipif(not FILE.exists(), reason="the NVFP4 vectors are not here")
SCHEMES = {("train", "1x16"): NVFP4, ("train", "16x16"): NVFP4_2D, ("ptq", "1x16"): NVFP4_PTQ}


@cache
def vectors() -> dict[str, Any]:
    return json.loads(FILE.read_text())


def floats(rows: str | list[str], shape: list[int]) -> Tensor:
    """FP32 numbers from hexadecimal digits, the most significant byte first."""
    digits = rows if isinstance(rows, str) else "".join(rows)
    return (
        torch.frombuffer(bytearray.fromhex(digits), dtype=torch.uint8)
        .view(-1, 4)
        .flip(1)
        .view(torch.float32)
        .view(shape)
    )


def octets(rows: list[str], shape: list[int]) -> Tensor:
    return torch.frombuffer(bytearray.fromhex("".join(rows)), dtype=torch.uint8).view(shape)


def test_scalar_tables():
    table = vectors()["e2m1_rne"]
    x = floats(table["input_f32_hex"], [-1])
    assert encode(round_nearest(x, E2M1), E2M1).tolist() == table["code"]
    table = vectors()["e2m1_sr"]
    x = floats(table["input_f32_hex"], [-1])
    random = torch.tensor(table["rbits"], dtype=torch.uint8)
    assert encode(round_stochastic(x, E2M1, random), E2M1).tolist() == table["code"]
    table = vectors()["e4m3_rne_saturate"]
    x = floats(table["input_f32_hex"], [-1])
    assert encode(round_nearest(x, E4M3), E4M3).tolist() == table["byte"]
    assert tuple(vectors()["default_rht_signs"]) == DEFAULT_SIGNS


def test_tensors():
    assert len(vectors()["cases"]) == 44
    for case in vectors()["cases"]:
        _check(case)


def _check(case: dict[str, Any]) -> None:
    name, shape = case["name"], case["quantized_shape"]
    axis = 0 if case["direction"] == "col" else 1
    x = floats(case["input_f32_hex"], case["shape"])
    x = x.bfloat16() if case["input_dtype"] == "bf16" else x
    if case["rht_signs"]:
        x = hadamard(x, axis, tuple(case["rht_signs"]))
        assert torch.equal(_filled(x, axis, shape), floats(case["rht_output_f32_hex"], shape).bfloat16()), name
    amax = floats(case["amax_given_hex"], []) if case["amax_given_hex"] else None
    draws = octets(case["rbits_hex"], shape) if case["rounding"] == "sr" else None
    found = quantize_drawn(x, SCHEMES[case["profile"], case["block"]], axis, amax, draws, 8)
    assert found.block_codes is not None
    assert torch.equal(pack(_filled(found.codes, axis, shape)), octets(case["packed_hex"], case["packed_shape"])), name
    scales = octets(case["block_scales_e4m3_hex"], case["block_scale_shape"])
    assert torch.equal(_filled(found.block_codes, axis, case["block_scale_shape"]), scales), name
    if "nonfinite" not in case["tags"]:
        assert torch.equal(_filled(found.dequantize(), axis, shape), floats(case["dequant_f32_hex"], shape)), name


def _filled(x: Tensor, axis: int, shape: list[int]) -> Tensor:
    """In the orientation of the vectors, filled up with zeros."""
    rows = x.T if axis == 0 else x
    return F.pad(rows, (0, shape[1] - rows.shape[1]))


def test_products():
    for case in vectors()["gemm_cases"]:
        x = quantize(floats(case["x_f32_hex"], case["x_shape"]), NVFP4)
        w = quantize(floats(case["w_f32_hex"], case["w_shape"]), NVFP4_2D)
        shape = [case["x_shape"][0], case["w_shape"][0]]
        y = (x.values().float() @ w.values().float().T) * (x.global_scale * w.global_scale)
        error = (y - floats(case["y_exact_f32_hex"], shape)).abs()
        assert (error <= 2**-18 * floats(case["abs_dot_f32_hex"], shape)).all(), case["name"]
