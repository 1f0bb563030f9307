import json
import math
from dataclasses import replace

import pytest

from seqloom.core.errors import ConfigError
from seqloom.nn.stability import METHODS
from seqloom.studies.output_norms import growth
from seqloom.studies.stability import PAPER_METHODS, SCALES, Options, findings, study
from seqloom.studies.stability_sweep import Cell, Sweep, end_of_patience, rise
from seqloom.studies.stability_tables import PAPER_LARGEST, PAPER_PERPLEXITY
from seqloom.studies.study import Findings
from seqloom.studies.trial import Trial
from seqloom.train.observer import Observer


class Listener(Observer):
    """Remembers what it was told."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def on_message(self, text: str) -> None:
        self.told.append(text)


RATES = (0.01, 0.1, 1.0)
STEPS = 100
SETTINGS = {"train": {"steps": STEPS}, "precision": {"activations": "fp32"}}


def trial(final: float, *, low: float | None = None, norms: float = 1.0, seconds: float = 0.1) -> Trial:
    """A loss that falls from 5 to `low` at step 60 and ends at `final`; outputs of layers that grow up to `norms`."""
    bottom = final if low is None else low
    losses = [5 - (5 - bottom) * step / 60 for step in range(1, 61)] + [final] * 40
    kinds = ("q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj")
    watched = [
        {"step": step, **{f"output_norm.{kind}": norms ** (step / STEPS) for kind in kinds}}
        for step in range(2, STEPS + 1, 2)
    ]
    return Trial(
        settings=SETTINGS, machine="a machine", losses=losses, valid={"loss": final}, watched=watched,
        step_seconds=seconds,
    )  # fmt: skip


def sweep(**finals: dict[float, Trial]) -> Sweep:
    """One seed; method -> rate -> trial."""
    return Sweep(
        scale="gpu",
        methods=tuple(finals),
        rates=RATES,
        seeds=1,
        run=SCALES["laptop"].run,
        normal_rate=0.012,
        quality_margin=0.05,
        cells=[
            Cell(method=method, rate=rate, seed=0, trial=one)
            for method, trials in finals.items()
            for rate, one in trials.items()
        ],
    )


def verdicts(of: Sweep) -> dict[str, str]:
    return {claim.name: claim.verdict for claim in findings(of).claims}


def like_the_paper() -> Sweep:
    """The plain model diverges first and loudly, qk_norm later, norm and cap last."""
    calm, wild = trial(2.5), trial(4.5, low=2.6, norms=9.0)
    slow = trial(2.4, seconds=0.104)
    return sweep(
        base={0.01: calm, 0.1: wild, 1.0: wild},
        soft_cap={0.01: trial(2.51), 0.1: trial(2.5), 1.0: wild},
        qk_norm={0.01: slow, 0.1: slow, 1.0: trial(3.0)},
        qk_norm_cap={0.01: slow, 0.1: slow, 1.0: trial(2.4)},
        qkv_norm={0.01: slow, 0.1: slow, 1.0: trial(2.5)},
        qk_fc_norm={0.01: slow, 0.1: slow, 1.0: trial(3.0)},
    )


def test_the_last_steps_far_above_the_minimum_are_a_divergence():
    assert rise([3.0] * 98 + [3.4, 3.7], STEPS) == "0.55 nats above its own minimum"
    assert not rise([3.0] * 98 + [3.4, 3.5], STEPS)
    assert not rise([9.0, 2.0, 9.0] + [2.2] * 97, STEPS)  # a spike that is over


def test_patience_ends_a_run_that_stays_above_its_limit():
    fine, above = [3.0] * 20, [4.0] * 11
    assert end_of_patience(fine + above[:5], STEPS, 0.1) is None
    assert end_of_patience(fine + above, STEPS, 0.1).startswith("above its own minimum by 1.00 nats for 10 steps")
    assert end_of_patience(fine + above[:9] + [3.0, 3.0] + above[:2], STEPS, 0.1) is None
    assert end_of_patience(fine + above * 7, STEPS, 1.0) is None


def test_a_validation_loss_far_above_the_best_method_is_a_divergence():
    of = sweep(base={0.01: trial(2.0)}, qk_norm={0.01: trial(2.19)}, soft_cap={0.01: trial(2.3)})
    reasons = [of.divergence(cell) for cell in of.cells]
    assert reasons == ["", "", "validation loss 1.15 times the best method's"]
    spoilt = replace(trial(2.0), finite=False, ended="step 7: the loss is nan", valid={})
    of = sweep(base={0.01: spoilt}, qk_norm={0.01: replace(trial(2.0), valid={})})
    assert [of.divergence(cell) for cell in of.cells] == ["step 7: the loss is nan", "validation loss not finite"]
    assert of.cells[0].final == math.inf


def test_the_largest_stable_rate_is_the_last_before_the_first_divergence():
    good, bad = trial(2.0), trial(4.0, low=2.0)
    of = sweep(
        up={0.01: good, 0.1: good, 1.0: good},
        gap={0.01: good, 0.1: bad, 1.0: good},
        none={0.01: bad, 0.1: bad, 1.0: bad},
        missing={0.01: good, 1.0: good},
        known={0.01: good, 0.1: bad},
    )
    stable = {method: of.largest_stable(method) for method in of.methods}
    assert stable == {"up": 1.0, "gap": 0.01, "none": 0.0, "missing": None, "known": 0.01}


def test_one_seed_that_diverges_is_enough():
    of = sweep(base={0.01: trial(2.0)})
    of.cells.append(Cell(method="base", rate=0.01, seed=1, trial=trial(4.0, low=2.0)))
    assert of.diverged("base", 0.01)
    assert of.final("base", 0.01) == pytest.approx(3.0)
    assert "3.00 div 1/2" in findings(of).as_text()


def test_sensitivity_counts_no_loss_beyond_the_first():
    spoilt = replace(trial(2.0), finite=False, ended="step 7: the loss is nan")
    of = sweep(base={0.01: trial(2.5), 0.1: trial(2.0), 1.0: spoilt})
    first = spoilt.losses[0]
    assert of.sensitivity("base") == pytest.approx((2.5 + 2.0 + first) / 3 - 2.0)
    assert of.excess("base") == pytest.approx(first - 2.0)
    assert sweep(base={0.01: trial(2.5)}).sensitivity("base") is None


def test_claims_hold_where_the_data_is_like_the_paper():
    assert verdicts(like_the_paper()) == dict.fromkeys(
        ("grades", "rates", "outputs", "warning", "quality", "cap", "speed"), "reproduced"
    )


def test_claims_fail_where_the_data_says_otherwise():
    of = like_the_paper()
    worse, wild, slow = trial(2.7), trial(4.5, low=2.6), trial(2.4, seconds=0.2)
    changed = {
        ("qk_norm", 0.1): wild,  # rates, outputs
        ("qk_norm", 1.0): wild,  # grades
        ("qk_fc_norm", 1.0): wild,
        ("qkv_norm", 0.01): worse,  # quality
        ("soft_cap", 0.01): trial(2.4),  # cap
        ("base", 0.1): wild,  # warning: the loss rises, the outputs do not
        ("qk_norm", 0.01): slow,  # speed
    }
    of.cells[:] = [replace(cell, trial=changed.get((cell.method, cell.rate), cell.trial)) for cell in of.cells]
    found = verdicts(of)
    assert {name for name, verdict in found.items() if verdict == "not reproduced"} == {
        "grades", "rates", "outputs", "warning", "quality", "cap",
    }  # fmt: skip
    assert {claim.name: claim for claim in findings(of).claims}["speed"].here.startswith("qk_norm 1.")


def test_what_was_not_trained_is_not_judged():
    found = findings(sweep(base={0.01: trial(2.5)}))
    assert {claim.verdict for claim in found.claims} == {"not measured"}
    assert all(claim.here for claim in found.claims)
    assert "1 of 3 runs were trained" in found.remarks[0]


def test_without_a_divergence_the_report_says_so():
    calm = dict.fromkeys(RATES, trial(2.5))
    found = findings(sweep(base=calm, qk_norm=calm, qkv_norm=calm, qk_fc_norm=calm))
    here = {claim.name: (claim.verdict, claim.here) for claim in found.claims}
    assert here["rates"] == ("not reproduced", "base was stable at every rate, up to 1")
    assert here["warning"] == ("not measured", "base did not diverge by itself at any rate, up to 1")
    assert here["outputs"][0] == "not measured"
    assert any(remark.startswith("No run diverged by itself") for remark in found.remarks)


def test_the_warning_comes_so_many_steps_ahead():
    found = growth(like_the_paper())
    assert found.wild.rate == 0.1
    assert found.warned == 32  # the first even step with 9^(step / 100) > 2
    assert found.rose == 61
    (claim,) = [claim for claim in findings(like_the_paper()).claims if claim.name == "warning"]
    assert claim.here == "at 0.1 all from step 32, the loss at step 61: 29 steps ahead"


def test_the_paper_s_figures_name_known_methods():
    assert set(PAPER_PERPLEXITY) < set(PAPER_LARGEST) == set(PAPER_METHODS) < set(METHODS)


@pytest.mark.usefixtures("narrow_scale")
def test_a_study_is_resumed_and_never_trains_twice(tmp_path):
    def run(options: Options) -> tuple[Findings, list[str]]:
        listener = Listener()
        return study(options, tmp_path, listener), [line.split(":")[0] for line in listener.told]

    first, trained = run(Options(rates=(0.01,)))
    assert trained == ["1/2  base at 0.01, seed 0", "2/2  qk_norm at 0.01, seed 0"]
    whole, trained = run(Options())
    assert trained == ["3/4  base at 0.3, seed 0", "4/4  qk_norm at 0.3, seed 0"]
    assert whole.data["runs"][:2] == first.data["runs"]
    again, trained = run(Options())
    assert not trained
    assert again.as_data() == whole.as_data()
    shorter, trained = run(Options(steps=12, methods=("base",), rates=(0.01,)))
    assert trained == ["1/1  base at 0.01, seed 0"]
    assert "12 steps" in shorter.setting["training"]


@pytest.mark.usefixtures("narrow_scale")
def test_runs_of_a_seed_are_paired(tmp_path):
    """Methods that leave the first forward pass alone begin with the same loss on the same batch."""
    study(Options(methods=("base", "z_loss", "no_pre"), rates=(0.01,), seeds=2), tmp_path, Listener())
    losses = {}
    for path in (tmp_path / "trials").iterdir():
        _, method, _, seed = path.stem.split("-")
        losses[method, seed] = json.loads(path.read_text(encoding="utf-8"))["losses"][0]
    assert losses["base", "0"] == losses["z_loss", "0"]
    assert losses["base", "0"] != losses["base", "1"]
    assert losses["base", "0"] != losses["no_pre", "0"]


@pytest.mark.usefixtures("narrow_scale")
def test_out_of_time_it_reports_what_there_is(tmp_path):
    with pytest.raises(ConfigError, match="too few"):
        study(Options(minutes=1e-9), tmp_path, Listener())
    study(Options(methods=("base",), rates=(0.01,)), tmp_path, Listener())
    found = study(Options(minutes=1e-9), tmp_path, Listener())
    assert found.remarks[0].startswith("1 of 4 runs were trained")


def test_an_unknown_method_is_named_with_its_neighbour(tmp_path):
    with pytest.raises(ConfigError, match="unknown method 'qknorm'; did you mean 'qk_norm'"):
        study(Options(methods=("base", "qknorm")), tmp_path, Listener())


def test_both_scales_are_complete_runs():
    for scale in SCALES.values():
        assert scale.normal_rate in scale.rates
        assert "base" in scale.methods
        assert scale.run.model.attention.head_width * scale.run.model.attention.heads == scale.run.model.width
    gpu = SCALES["gpu"].run.model
    assert 12 * 12 * gpu.width**2 == pytest.approx(38e6, rel=0.02)
