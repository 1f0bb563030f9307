"""The study of attention on agents that were hardly trained, and its verdicts on figures that were given."""

from dataclasses import replace
from pathlib import Path

import pytest

from seqloom.core.errors import ConfigError
from seqloom.studies import attention
from seqloom.studies.attention_causes import Causes, Near
from seqloom.studies.attention_claims import Measured
from seqloom.studies.attention_runs import ATTENTION, FIXED, LSTM, PONG, SCALES, TOP_DOWN, Scale, Trained, with_steps
from seqloom.systems.attention_agent.config import Run
from seqloom.train.observer import Observer
from tests.systems.attention_agent.small import small

CAUSES = Causes(
    moments=100,
    near=[
        Near(radius=0, mass=0.5, uniform=0.08),
        Near(radius=1, mass=0.7, uniform=0.3),
        Near(radius=2, mass=0.9, uniform=0.5),
    ],
    maskings=25,
    attended_kl=0.9,
    other_kl=0.2,
    insertions=20,
    risen=0.7,
    rise=4.0,
    insertion_kl=0.1,
    correlation=0.5,
    attention_entropy=1.0,
    saliency_entropy=2.0,
)


def runs() -> dict[str, dict[str, Run]]:
    scale = SCALES["laptop"]
    return {"catch": dict(scale.catch), "memory": dict(scale.memory), "pong": dict(scale.pong)}


def measured(causes: Causes | None = CAUSES, **curves: list[tuple[float, float]]) -> Measured:
    """Trainings that are given instead of made, as part__variant."""
    trained: dict[str, list[Trained]] = {}
    for name, curve in curves.items():
        part, variant = name.split("__")
        run = runs()[part][variant]
        trained.setdefault(part, []).append(
            Trained(variant=variant, seed=0, run=run, folder=Path(), curve=curve, frames_per_second=100.0)
        )
    found = {"catch": {0: causes}} if causes is not None else {}
    return Measured(scale="laptop", runs=runs(), trained=trained, causes=found)


def verdicts(found: Measured) -> dict[str, bool | None]:
    return {claim.name: claim.holds for claim in attention.findings(found).claims}


def test_nothing_trained_is_nothing_measured() -> None:
    assert set(verdicts(measured(None)).values()) == {None}


def test_figures_that_hold() -> None:
    found = measured(
        catch__attention=[(1e5, 1.0), (3e5, 3.7), (4e5, 3.9)],
        catch__lstm=[(1e5, 1.0), (2e5, 3.6), (4e5, 3.8)],
        memory__top_down=[(1e5, 0.98)],
        memory__fixed=[(1e5, 0.6)],
        pong__pong=[(6e6, 10.0)],
    )
    held = verdicts(replace(found, causes={"pong": {0: CAUSES}, "catch": {0: replace(CAUSES, risen=0.1)}}))
    assert set(held.values()) == {True}  # judged on Pong, which was learned
    text = attention.findings(found).as_text()
    assert "300 k against 200 k" in text
    assert "0.60 against 0.98, chance 0.25" in text
    assert "<svg" in attention.findings(found).as_page()


def test_figures_that_do_not_hold() -> None:
    worse = replace(
        CAUSES, attended_kl=0.3, risen=0.5, attention_entropy=3.0, near=[Near(radius=0, mass=0.3, uniform=0.1)]
    )
    found = measured(
        worse,
        catch__attention=[(1e5, 1.0), (4e5, 3.7)],
        catch__lstm=[(1e5, 1.0), (2e5, 3.6)],
        memory__top_down=[(1e5, 0.3)],
        memory__fixed=[(1e5, 0.2)],
        pong__pong=[(6e6, -12.0)],
    )
    assert set(verdicts(found).values()) == {False}


def test_a_short_curve_of_pong_settles_nothing() -> None:
    found = measured(pong__pong=[(1e5, -20.5)])
    claim = next(claim for claim in attention.findings(found).claims if claim.name == "A6 pong")
    assert claim.holds is None
    assert claim.here.startswith("-20.5 after 0.1 M frames, 100 frames a second")


def test_the_radius_that_leaves_room_is_judged() -> None:
    assert CAUSES.judged().radius == 0
    assert CAUSES.near[0].ratio == pytest.approx(6.25)
    wide = replace(CAUSES, near=[Near(radius=r, mass=0.5, uniform=0.02 * (r + 1)) for r in range(3)])
    assert wide.judged().radius == 2


def test_variants_differ_in_what_is_asked_alone() -> None:
    catch, memory = SCALES["laptop"].catch, SCALES["laptop"].memory
    for variant, run in catch.items():
        assert replace(run, model=catch[ATTENTION].model) == catch[ATTENTION]
        assert run.model.core == variant
    fixed = replace(memory[FIXED], name="cue_memory", model=replace(memory[FIXED].model, query_kind="top_down"))
    assert fixed == memory[TOP_DOWN]
    assert {run.train.steps for run in with_steps(catch, 30).values()} == {30}


@pytest.mark.full
def test_trained_and_judged_and_nothing_is_trained_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = small(steps=2)
    models = {core: replace(run, model=replace(run.model, core=core)) for core in (ATTENTION, LSTM)}
    scale = Scale(catch=models, memory={}, pong={}, seeds=1)
    monkeypatch.setitem(SCALES, "laptop", scale)
    monkeypatch.setattr("seqloom.studies.attention_causes.MOMENTS", 24)
    options = attention.Options(parts=("catch",))
    found = attention.study(options, tmp_path, Observer())
    log = (tmp_path / "runs" / "laptop" / "attention-0" / "metrics.jsonl").read_bytes()
    assert {claim.name for claim in found.claims if claim.holds is None} == {"A5 queries", "A6 pong"}
    again = attention.study(options, tmp_path, Observer())
    assert again.as_data() == found.as_data()
    assert (tmp_path / "runs" / "laptop" / "attention-0" / "metrics.jsonl").read_bytes() == log
    measured = found.data["causes"]["catch"]["0"]
    assert (measured["moments"], measured["maskings"]) == (24, 6)
    near = measured["near"]
    assert [each["radius"] for each in near] == [0, 1, 2]
    assert near[0]["mass"] < near[1]["mass"] < near[2]["mass"]


def test_without_atari_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(extra: str, module: str) -> None:
        raise ConfigError("install it with: pip install 'seqloom[atari]'")

    monkeypatch.setattr(attention, "require", missing)
    found = attention.study(attention.Options(parts=("pong",)), tmp_path, Observer())
    assert found.remarks[0] == "Pong was not trained: install it with: pip install 'seqloom[atari]'"
    assert PONG not in {each["variant"] for each in found.data["runs"]}
