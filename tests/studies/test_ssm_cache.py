"""The study of narrow states, on a model of some thousand parameters, and what it says of given measurements."""

from dataclasses import replace
from pathlib import Path

import pytest

from seqloom.core.errors import ConfigError
from seqloom.nn.state_formats import StateFormats
from seqloom.studies import ssm_cache
from seqloom.studies.ssm_cache import Options, findings, study
from seqloom.studies.ssm_cache_tables import KINDS
from seqloom.studies.state_rounding import SITUATIONS, recurrence
from seqloom.train.observer import Observer
from study_trials import NARROW

DRIVEN = next(iter(SITUATIONS))
OPTIONS = Options(rows=2, tokens=12, seeds=2, recurrence_steps=8, steps=8)


def case(nats: float, drift: float) -> dict[str, object]:
    return {"nats": nats, "drift": [drift] * 4, "another": 0.0, "bytes": 2048}


def verdicts(**changed: dict[str, object]) -> dict[str, str]:
    """Of measurements in which every format is as good as FP32, but for those named ("__" before a seed)."""
    names = ["fp32", "kv fp8", "bf16", *KINDS, *(f"{kind}_sr {seed}" for kind in KINDS for seed in range(2))]
    decoded = {name: case(2.0, 0.001) for name in names}
    decoded |= {name.replace("__", " "): each for name, each in changed.items()}
    bare = {name: dict.fromkeys(SITUATIONS, 0.05) for name in names[2:]}
    bare |= {"fp16": {**bare["fp16"], DRIVEN: 0.3}, "fp16_sr 1": {**bare["fp16"], DRIVEN: 0.001}}
    found = findings(OPTIONS, "a model", decoded, bare, "a machine")
    assert [row[0] for row in found.tables[1].rows][:3] == ["fp32", "kv fp8", "bf16"]
    return {claim.name: claim.verdict for claim in found.claims}


def test_claims_follow_from_what_was_measured() -> None:
    equal = verdicts()
    assert equal["fp16 stalls"] == "reproduced" != equal["int8 stalls"]
    assert equal["fp16_sr is free"] == equal["kv fp8 is free"] == "reproduced"
    assert {equal[f"{kind} on text"] for kind in KINDS} == {"not reproduced"}
    worse = verdicts(**{"kv fp8": case(2.01, 0.1)}, fp16_sr__1=case(2.0019, 0.0), int8=case(2.0, 0.002))
    assert worse["kv fp8 is free"] == "not reproduced"
    assert worse["fp16_sr is free"] == "not reproduced"  # the mean is within the limit, its interval is not
    assert worse["int8 on text"] == worse["fp16 on text"] == "reproduced"


def test_nearest_rounding_stalls_where_stochastic_rounding_keeps_the_mean() -> None:
    cases = {name: StateFormats(ssm=name) for name in ("fp32", "fp16", "fp16_sr", "int8", "int8_sr")}
    found = recurrence(cases, 200)
    assert "fp32" not in found
    decaying = list(SITUATIONS)[-1]
    assert found["fp16_sr"][decaying] < 2e-3
    assert found["int8_sr"][decaying] < 8e-3
    assert found["fp16"][decaying] > 1e-2
    assert found["int8"][decaying] > 1e-2


@pytest.mark.full
def test_the_study_trains_decodes_and_reads_its_measurements_again(
    texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = ssm_cache.RUN_HERE
    data = replace(run.task.data, valid_fraction=0.2)
    task = replace(run.task, data=data, sequence_length=32, batch_rows=4, micro_rows=None, evaluate_rows=8)
    narrow = replace(run, model=NARROW, task=task, train=replace(run.train, device="cpu", threads=1))
    monkeypatch.setattr(ssm_cache, "RUN_HERE", narrow)
    options = replace(OPTIONS, data=(str(texts),))
    found = study(options, tmp_path, Quiet())
    decoded = found.data["decoded"]
    assert decoded["fp32"]["drift"] == [0.0] * 4
    assert 0 < decoded["fp16"]["drift"][3] < decoded["fp8"]["drift"][3] < 0.1
    assert decoded["int8_sr 0"]["nats"] != decoded["int8_sr 1"]["nats"]
    assert decoded["fp32"]["bytes"] > decoded["fp16"]["bytes"] > decoded["int8"]["bytes"]
    assert "paper: accuracy lost" in found.as_text()
    monkeypatch.setattr(ssm_cache, "decode", None)
    assert study(options, tmp_path, Quiet()).data == found.data
    attention = replace(narrow, model=replace(NARROW, pattern="*-"))
    monkeypatch.setattr(ssm_cache, "RUN_HERE", attention)
    with pytest.raises(ConfigError, match="has no Mamba layer"):
        study(options, tmp_path / "attention", Quiet())


class Quiet(Observer):
    def on_message(self, text: str) -> None:
        pass
