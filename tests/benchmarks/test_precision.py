"""Benchmarks of number formats on small matrices and models, and the cases for a GPU as far as they go without one."""

import json
from argparse import Namespace
from typing import Any

import pytest
import torch

from benchmarks import gpu_precision, precision
from benchmarks.__main__ import main
from benchmarks.case import Disagreement
from seqloom.ops.quantize import Rounded

QUICK = ["--threads", "1", "--repeats", "1", "--rows", "1", "--length", "32"]


def lines(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, list[dict[str, Any]]]:
    status = main(["precision", *arguments, *QUICK])
    return status, [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_every_rounding_is_that_of_the_reference(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(precision, "SIDE", 48)
    status, found = lines(capsys, "--only", "round-*")
    assert status == 0
    assert [line["case"] for line in found] == [f"round-{name}" for name in precision.ROUNDINGS]
    for line in found:
        assert line["share_of_ceiling"]["ours"] > 0
        assert line["kernel"] == "torch" or (line["gate"], "reference" in line["ratio"]) == ({"different": 0.0}, True)


def test_another_number_stops_the_clock() -> None:
    one = Rounded(torch.ones(2, 2), torch.ones(()))
    assert precision.refuse_other_bits(one, one) == {"different": 0.0}
    with pytest.raises(Disagreement, match="1 of 4 numbers"):
        precision.refuse_other_bits(one, Rounded(torch.tensor([[1.0, 1.0], [1.0, 2.0]]), torch.ones(())))
    with pytest.raises(Disagreement, match="not that of the reference"):
        precision.refuse_other_loss(5.0, 5.1)


def test_a_step_in_few_bits_is_timed_beside_bf16(capsys: pytest.CaptureFixture[str]) -> None:
    status, (line,) = lines(capsys, "--only", "step-toy-mxfp8")
    assert status == 0
    assert line["seconds"].keys() == {"ours", "bf16"}
    assert line["gate"]["ours"] == pytest.approx(line["gate"]["reference"], rel=1e-3)
    assert line["figures"]["times_bf16"] > 0


def test_units_may_differ_by_what_their_sums_allow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_precision, "DEVICE", "cpu")
    x, dy, layer = torch.randn(32, 48).bfloat16(), torch.randn(32, 16).bfloat16(), gpu_precision.built(48, 16)
    found = gpu_precision.passes(layer, gpu_precision.placed("fp8", "emulate"), x, dy)
    assert [tuple(each.shape) for each in found] == [(32, 16), (32, 48), (16, 48)]
    assert max(gpu_precision.gate("fp8", Namespace())["gate"].values()) <= 1  # torch's own FP8 products on a CPU
    exact = [x.float() @ layer.weight.mT, dy.float() @ layer.weight, dy.float().mT @ x.float()]
    assert all((one.float() - two).norm() < 0.1 * two.norm() for one, two in zip(found, exact, strict=True))
    sums = {name: (gpu_precision.PRECISE, each.detach().abs() + 1) for name, each in zip("abc", found, strict=True)}
    assert gpu_precision.refuse_too_far(found, found, sums) == {"gate": dict.fromkeys("abc", 0.0)}
    with pytest.raises(Disagreement, match="differ by"):
        gpu_precision.refuse_too_far([2 * each for each in found], found, sums)


def test_what_needs_a_device_is_measured_only_where_it_is_named() -> None:
    found = gpu_precision.cases()
    assert all(case.when_named and case.name.startswith("precision-") for case in found)
    assert gpu_precision.wide(2048).build  # the shapes are possible ones
