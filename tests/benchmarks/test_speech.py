"""The cases of speech in little: gates hold, and stop the clock where a side computes something else."""

import json
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import speech
from benchmarks.__main__ import main
from benchmarks.case import Disagreement
from benchmarks.speech_network import shapes, training_flops
from seqloom.systems.deep_speech2 import recipes

QUICK = ["--threads", "1", "--repeats", "1", "--rows", "2", "--audio-seconds", "0.5"]


def line(capsys: pytest.CaptureFixture[str], case: str) -> dict[str, Any]:
    assert main(["speech", "--only", case, *QUICK]) == 0
    (found,) = map(json.loads, capsys.readouterr().out.splitlines())
    return found


@pytest.mark.parametrize("bins", [161, 80])
def test_features_are_those_of_stft(bins: int, capsys: pytest.CaptureFixture[str]) -> None:
    found = line(capsys, f"features-{bins}")
    assert found["ratio"].keys() == found["gate"].keys() == {"stft"}
    assert 0 < found["figures"]["ours_real_time_factor"] < 1


@pytest.mark.parametrize(("op", "sizes", "peers"), [
    ("ctc", (3, 20, 7), {"ctc_loss"}),
    ("rnn", (2, 9, 5), {"torch_rnn", "loop"}),
    ("gru", (2, 9, 5), {"torch_gru", "loop"}),
])  # fmt: skip
def test_ops_have_the_gradients_of_torch(
    op: str,
    sizes: tuple[int, ...],
    peers: set[str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("CTC", "RECURRENT"):
        monkeypatch.setattr(speech, name, (sizes,))
    found = line(capsys, "-".join([op, *map(str, sizes)]))
    assert peers <= found["ratio"].keys()
    assert found["share_of_ceiling"]["ours"] > 0


def test_a_network_of_torchs_layers_learns_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    found = line(capsys, "train-toy")
    ours, theirs = found["gate"]["ours"], found["gate"]["torch_layers"]
    assert theirs == pytest.approx(ours, rel=1e-3)
    assert ours[1] < ours[0]  # the step was taken
    assert found["figures"].keys() == {"ours_utterances_per_second", "torch_layers_utterances_per_second"}


def test_products_are_counted_as_torch_counts_them() -> None:
    config = shapes("tiny")
    with FlopCounterMode(display=False) as counter:
        front = config.build()
        front.front(torch.randn(1, 64, 49), torch.tensor([49]))
    layer, steps = config.conv[0], 25
    convolution = 2 * 32 * steps * layer.channels * layer.kernel[0] * layer.kernel[1]
    assert counter.get_total_flops() == convolution
    width, hidden = 8 * 32, config.recurrent.width
    recurrent = 2 * steps * 6 * hidden * (width + hidden + hidden + hidden)
    assert training_flops(config, 1, 49) == 3 * (convolution + recurrent + 2 * steps * hidden * 29)


@pytest.mark.full
@pytest.mark.parametrize("prior", ["nothing", "words"])
def test_the_search_is_gated_by_its_reference(prior: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert line(capsys, f"beam-{prior}")["figures"]["utterances_per_second"] > 0


@pytest.mark.full
def test_streams_are_served_in_batches_and_one_by_one(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    small = recipes.an4_streaming()
    tiny = recipes.tiny().model
    model = replace(small.model, conv=tiny.conv, recurrent=replace(small.model.recurrent, width=8))
    monkeypatch.setitem(recipes.RECIPES, "an4_streaming", lambda: replace(small, model=model))
    monkeypatch.setattr(speech, "STREAMS", (3,))
    assert line(capsys, "stream")["figures"]["look_ahead_seconds"] > 0.2
    assert {"ours_p98_ms", "one_by_one_p98_ms"} < line(capsys, "dispatch-3")["figures"].keys()


def test_what_differs_is_not_timed() -> None:
    with pytest.raises(Disagreement, match=r"differ by \{'peer': 0\.5\}"):
        speech._close({"ours": torch.tensor([1.0, 2.0]), "peer": torch.tensor([1.0, 3.0])}, 1e-3)
