import os
from dataclasses import replace

from seqloom.ops.kernels import VARIABLE
from seqloom.studies.speech_speed import Options, findings, planned
from seqloom.studies.speech_timing import PARTS, ctc_accuracy, ctc_times, system_times
from tiny_speech import narrow, write_corpus


def timed(seconds, back):
    return {"steps": 150, "labels": 40, "symbols": 28, "rows": 64, "seconds": seconds, "torch_seconds": 0.02,
            "round_trip_seconds": back}  # fmt: skip


def verdicts(plain, ctc, accuracy):
    system = {"seconds": 1.0, "plain_seconds": plain, "padding": 0.1, "plain_padding": 0.5, "gains": {}}
    return [claim.verdict for claim in findings(system, [ctc], accuracy, planned(Options()), "a machine").claims]


def test_the_claims_are_those_of_the_paper():
    right = {"cost": 1e-7, "gradient": 2e-5, "torch_cost": 1e-7, "torch_gradient": 3e-5, "finite": 1.0}
    assert verdicts(7.5, timed(0.01, 0.11), right) == ["reproduced"] * 3
    assert verdicts(6.5, timed(0.01, 0.09), right | {"gradient": 1e-4}) == ["not reproduced"] * 3
    assert verdicts(7.5, timed(0.01, None), right)[2] == "not measured"


def test_ctc_agrees_with_torch_and_is_timed():
    found = ctc_accuracy()
    assert found["finite"] == 1.0
    assert found["cost"] < 1e-5
    assert found["gradient"] < 2 * found["torch_gradient"]
    (one,) = ctc_times([(10, 3, 5)], (2,))
    assert one["seconds"] > 0
    assert one["torch_seconds"] > 0


def test_both_ways_agree_and_the_override_does_not_stay(tmp_path):
    run = narrow(write_corpus(tmp_path / "speech"))
    run = replace(run, train=replace(run.train, device="cpu"))
    before = os.environ.get(VARIABLE)
    found = system_times(run, 1, lambda what, share: None)
    assert set(found["gains"]) == set(PARTS)
    assert found["plain_padding"] > found["padding"] >= 0
    assert os.environ.get(VARIABLE) == before


def test_options_reach_the_run():
    for scale in ("laptop", "gpu"):
        run = planned(Options(scale=scale, data=("a",)))
        assert [source.path for source in run.task.data.sources] == ["a"]
        assert run.task.augment.noise_fraction == 0
