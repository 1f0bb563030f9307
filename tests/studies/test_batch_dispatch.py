from dataclasses import replace

import pytest

from seqloom.studies import batch_dispatch
from seqloom.studies.batch_dispatch import BATCHES, ONE_BY_ONE, Options, Point, findings, shapes, study
from seqloom.systems.deep_speech2.config import ConvConfig, FeatureConfig, RecurrentConfig
from seqloom.train.observer import Observer


def point(streams, policy, p98, speed):
    return Point(streams=streams, policy=policy, median=p98 / 2, p98=p98, speed=speed, batch=2.0)


def verdicts(points):
    return {claim.name: claim.verdict for claim in findings(points, Options(), "a machine").claims}


def test_latency_is_judged_where_one_by_one_no_longer_follows():
    points = [
        point(1, BATCHES, 0.05, 10), point(1, ONE_BY_ONE, 0.05, 10),
        point(16, BATCHES, 0.2, 24), point(16, ONE_BY_ONE, 4.0, 10),
    ]  # fmt: skip
    assert verdicts(points) == dict.fromkeys(("latency", "throughput", "a lone stream"), "reproduced")
    assert points[3].load == pytest.approx(1.6)
    slow = [points[0], points[1], point(16, BATCHES, 2.5, 15), points[3]]
    assert verdicts(slow) == {
        "latency": "not reproduced", "throughput": "not reproduced", "a lone stream": "reproduced",
    }  # fmt: skip
    idle = [points[0], points[1], point(8, BATCHES, 0.1, 20), point(8, ONE_BY_ONE, 0.2, 10)]
    assert verdicts(idle)["latency"] == "not measured"


@pytest.mark.full
def test_streams_are_served_and_measurements_kept(tmp_path, monkeypatch):
    small = replace(
        shapes("laptop"),
        features=FeatureConfig(bins=20, normalisation="adaptive", power_normalisation=False),
        conv=(ConvConfig(channels=2, kernel=(5, 5), stride=(2, 2)),),
        recurrent=RecurrentConfig(kind="gru", layers=1, width=12, directions="forward"),
    )
    monkeypatch.setattr(batch_dispatch, "shapes", lambda scale: small)
    options = Options(streams=(4, 1), seconds=0.3)
    found = study(options, tmp_path, Observer())
    assert [(p["streams"], p["policy"]) for p in found.data["points"]] == [
        (1, BATCHES), (1, ONE_BY_ONE), (4, BATCHES), (4, ONE_BY_ONE),
    ]  # fmt: skip
    assert all(p["batch"] == 1 for p in found.data["points"] if p["policy"] == ONE_BY_ONE)
    assert all(0 < p["median"] <= p["p98"] for p in found.data["points"])
    assert study(options, tmp_path, Observer()).as_data() == found.as_data()
