import json
from dataclasses import replace

import pytest

from seqloom.core.errors import ConfigError
from seqloom.studies import balancing
from seqloom.studies.paired import PairedOptions, difference
from seqloom.studies.trial import Trial
from seqloom.train.observer import Observer
from study_trials import paired, trial


class Listener(Observer):
    def __init__(self) -> None:
        self.told: list[str] = []

    def on_message(self, text: str) -> None:
        self.told.append(text)


def test_a_difference_has_the_interval_of_student_s_t() -> None:
    """Four pairs with mean 1 and standard deviation 0.5: t(3) = 3.182."""
    found = difference([0.4, 0.8, 1.2, 1.6])
    assert found.mean == pytest.approx(1.0)
    assert found.half == pytest.approx(3.182 * 0.5163978 / 2, rel=1e-4)
    assert (found.above, found.below) == (True, False)
    assert difference([]) is None


def test_what_lies_within_the_interval_is_not_shown() -> None:
    noisy = difference([-0.3, 0.1, 0.5])
    assert not noisy.above
    assert not noisy.below
    assert noisy.at_most(0.01) is None
    assert noisy.beside(0.01) == f"{noisy}; the interval holds both answers"
    assert [difference([share]).at_most(0.01) for share in (-0.3, 0.01, 0.02)] == [True, True, False]
    assert difference([-0.01]).below
    assert str(difference([-0.01])) == "-1.00% (one seed)"
    assert str(difference([0.01, 0.01, 0.01])) == "+1.00% (± 0.00% over 3 seeds)"


def test_differences_pair_the_seeds_that_both_have() -> None:
    found = paired(balancing, nothing=[trial(2.0), trial(4.0), trial(9.0)], bias=[trial(2.2), trial(4.4)])
    assert found.difference("bias", "nothing").mean == pytest.approx(0.1)
    assert found.difference("bias", "nothing").seeds == 2
    assert found.difference("loss", "nothing") is None
    assert found.remarks()[0] == "5 of 12 runs were trained to their end."


def test_a_run_that_ended_early_is_told_and_not_compared() -> None:
    spoilt = replace(trial(0.0), valid={}, ended="step 7: the loss is nan", finite=False)
    found = paired(balancing, nothing=[trial(2.0)], bias=[spoilt])
    assert found.difference("bias", "nothing") is None
    assert "bias, seed 0: step 7: the loss is nan" in found.remarks()
    assert found.row("bias")[4] == "-"


@pytest.mark.usefixtures("narrow_twins")
def test_variants_of_a_seed_see_the_same_batches_and_nothing_is_trained_twice(texts, tmp_path) -> None:
    options = balancing.Options(data=(str(texts),), steps=4, seeds=2)
    listener = Listener()
    balancing.study(replace(options, seeds=1), tmp_path, listener)
    assert len(listener.told) == 4
    whole = balancing.study(options, tmp_path, listener)
    assert [line.split(":")[0] for line in listener.told[4:]] == [
        f"{number}/8  {variant}, seed 1"
        for number, variant in enumerate(("nothing", "loss", "bias", "bias_and_loss"), 5)
    ]
    again = balancing.study(options, tmp_path, listener)
    assert len(listener.told) == 8
    assert again.as_data() == whole.as_data()
    first = {
        path.stem: Trial(**json.loads(path.read_text(encoding="utf-8"))).losses[0]
        for path in (tmp_path / "trials").iterdir()
    }
    assert first["laptop-nothing-0"] == first["laptop-bias_and_loss-0"] != first["laptop-nothing-1"]
    assert whole.setting["text"] == texts.name
    whole.write(tmp_path)
    loads = whole.data["max_vio"]
    assert loads.keys() == {"nothing", "loss", "bias", "bias_and_loss"}
    assert all(layers.keys() == {"layers.1", "layers.3"} for layers in loads.values())
    assert all(1 <= value <= 4 for layers in loads.values() for value in layers.values())
    assert loads["nothing"] != loads["bias"]


@pytest.mark.usefixtures("narrow_twins")
def test_out_of_time_it_says_so_or_reports_what_there_is(texts, tmp_path) -> None:
    options = balancing.Options(data=(str(texts),), steps=8, minutes=1e-9)
    with pytest.raises(ConfigError, match="too few"):
        balancing.study(options, tmp_path, Listener())


@pytest.mark.parametrize("scale", ["laptop", "small"])
def test_options_reach_every_run(scale: str) -> None:
    options = PairedOptions(data=("a", "b"), steps=100)
    for run in balancing.SCALES[scale].runs(options).values():
        assert [source.path for source in run.task.data.sources] == ["a", "b"]
        assert (run.train.steps, run.train.schedule.warmup_steps, run.train.monitor_every) == (100, 5, 2)
