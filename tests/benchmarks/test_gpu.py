"""The GPU benchmark as far as it goes without a GPU: it says so, and its gates are right where kernels are."""

import pytest
import torch
from serve.recorder import Repeats

from benchmarks import gpu, gpu_gates, gpu_serve
from benchmarks.__main__ import main
from benchmarks.case import Disagreement
from benchmarks.models import build
from benchmarks.pairing import OURS
from seqloom.serve.captured import DecodeStep


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a device")
def test_without_a_device_it_says_so_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match=str(gpu.NO_DEVICE)):
        main(["gpu"])
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.splitlines() == ["benchmarks gpu: torch finds no CUDA device here, so nothing was measured"]


SLOW = {"ssd": pytest.mark.full}


@pytest.mark.parametrize("op", [pytest.param(op, marks=SLOW.get(op, ())) for op in gpu_gates.GATED])
def test_gates_let_pass_what_agrees_and_stop_what_does_not(op: str) -> None:
    torch.manual_seed(0)
    gated = gpu_gates.GATED[op]()
    line = gpu_gates.gate(gated, "fp32")
    assert line["gate"]["reference"] < gpu_gates.LARGEST["fp32"]
    off = gated._replace(
        inputs=tuple(value[..., :3] for value in gated.inputs[:1]), kernel=torch.sin, reference=torch.cos
    )
    with pytest.raises(Disagreement, match="are off by"):
        gpu_gates.gate(off, "fp32")


def test_the_gate_of_serving_wants_the_same_answers_recorded_and_not() -> None:
    model = build(gpu_serve.GATED, "fp32").eval()
    recorder = Repeats()
    recorded = gpu_serve.engine_of(model, 8)
    scheduler = recorded._scheduler
    scheduler.decode = DecodeStep(model, scheduler.cache, 8, recorder)
    single = gpu_serve.answered(gpu_serve.single_calls(gpu_serve.engine_of(model, 8)), 0)
    assert gpu_serve.same({OURS: gpu_serve.answered(recorded, 3), "single_calls": single}) == {"equal_answers": 12}
    assert recorder.replayed > recorder.recorded > 3
    with pytest.raises(Disagreement, match="answer 11 differs from that of cpu at token 0 of 41"):
        gpu_serve.same({OURS: single, "cpu": [*single[:11], [-1]]})


def test_a_gate_stops_what_gives_other_bits_in_a_second_run() -> None:
    calls: list[int] = []

    def drifting(x: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        return x * (1 + 1e-7 * len(calls))

    gated = gpu_gates.Gated("norm", drifting, lambda x: x, (torch.randn(99),), (0,))
    with pytest.raises(Disagreement, match="other bits"):
        gpu_gates.gate(gated, "fp32")
