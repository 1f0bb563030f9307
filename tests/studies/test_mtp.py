"""The study of guesses, on a model of some thousand parameters and on given measurements."""

from dataclasses import replace
from pathlib import Path

import pytest

from seqloom.core.errors import ConfigError
from seqloom.studies import mtp
from seqloom.studies.mtp import Options, drafted, findings, study
from seqloom.studies.mtp_tables import AUTO, DEPTHS, GREEDY, SAMPLED, Drafted
from seqloom.systems.hybrid_lm.config import MlpConfig
from seqloom.train.observer import Observer
from study_trials import NARROW


class Quiet(Observer):
    def on_message(self, text: str) -> None:
        pass


def given(accepted: list[int], times: list[float], same: int = 4) -> Drafted:
    """100 tokens with up to so many guesses, each position offered 40 times; `times` begins with plain decoding."""
    counts = {
        str(length): {
            "seconds": seconds,
            "tokens": 100,
            "offered": [40] * length,
            "accepted": accepted[:length],
            "same": same if length else 0,
            "texts": 4,
        }
        for length, seconds in enumerate(times)
    }
    counts[AUTO] = counts[str(len(accepted))] | {"offered": [40] * 16, "accepted": [0] * 16}
    return {GREEDY: counts, SAMPLED: counts}


def verdicts(**models: Drafted) -> dict[str, str]:
    found = findings(Options(), {name.replace("_", " "): each for name, each in models.items()}, "a machine")
    assert len(found.tables) == 2 * len(models)
    return {claim.name: claim.verdict for claim in found.claims}


def test_claims_follow_from_what_was_measured() -> None:
    good, flat = given([30, 20, 12], [1.0, 0.8, 0.7, 0.75]), given([12, 16, 14], [1.0, 1.1, 1.2, 1.3], same=3)
    two, one = DEPTHS
    names = {name: name.replace(" ", "_") for name in DEPTHS}
    better = verdicts(**{names[two]: good, names[one]: given([30, 15, 2], [1.0, 0.8, 0.7, 0.75])})
    assert set(better.values()) == {"reproduced"}
    worse = verdicts(**{names[two]: flat, names[one]: good})
    assert set(worse.values()) == {"not reproduced"}
    alone = verdicts(given=good)
    assert alone.pop("depth") == "not measured"
    assert set(alone.values()) == {"reproduced"}


@pytest.mark.full
def test_the_study_trains_drafts_and_reads_its_measurements_again(
    texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = mtp.RUN_HERE
    data = replace(run.task.data, valid_fraction=0.2)
    task = replace(run.task, data=data, sequence_length=32, batch_rows=4, micro_rows=None, evaluate_rows=8)
    model = replace(NARROW, pattern="M-*-", mlp=MlpConfig(hidden_width=32))
    monkeypatch.setattr(
        mtp, "RUN_HERE", replace(run, model=model, task=task, train=replace(run.train, device="cpu", threads=1))
    )
    options = Options(data=(str(texts),), steps=8, lengths=(3, 1), passages=2, prompt=8, answer=12)
    found = study(options, tmp_path, Quiet())
    assert set(found.data["drafted"]) == set(DEPTHS)
    for counts in (each[way] for each in found.data["drafted"].values() for way in (GREEDY, SAMPLED)):
        assert list(counts) == ["0", "1", "3", AUTO]
        assert counts["0"]["tokens"] == counts["3"]["tokens"]
        assert [len(counts[length]["offered"]) for length in counts] == [0, 1, 3, 16]
        assert counts["3"]["offered"][0] > 0
    assert next(claim for claim in found.claims if claim.name == "lossless").verdict == "reproduced"
    monkeypatch.setattr(mtp, "drafted", None)
    assert study(options, tmp_path, Quiet()).data == found.data
    with pytest.raises(ConfigError, match="has no prediction block"):
        drafted(_without_block(tmp_path, texts), options, [1])


def _without_block(folder: Path, texts: Path) -> Path:
    from seqloom.data.config import SourceConfig
    from seqloom.train.loop import train

    run = mtp.RUN_HERE
    data = replace(run.task.data, sources=(SourceConfig(path=str(texts)),))
    train(replace(run, task=replace(run.task, data=data), train=replace(run.train, steps=1)), folder / "plain")
    return folder / "plain"
