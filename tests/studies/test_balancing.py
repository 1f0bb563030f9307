from seqloom.studies import balancing
from seqloom.studies.balancing import final, findings, loads
from study_trials import paired, trial


def verdicts(bits: dict[str, float], max_vio: dict[str, float]) -> dict[str, str]:
    layers = {way: {"layers.1": value / 2, "layers.3": value} for way, value in max_vio.items()}
    trials = {way: [trial(bits[way], max_vio=layers[way])] for way in bits}
    return {claim.name: claim.verdict for claim in findings(paired(balancing, **trials)).claims}


def test_claims_hold_where_the_data_is_like_the_papers() -> None:
    assert verdicts(
        {"nothing": 2.0, "loss": 2.0, "bias": 2.0, "bias_and_loss": 2.01},
        {"nothing": 5.0, "loss": 3.0, "bias": 1.8, "bias_and_loss": 1.5},
    ) == dict.fromkeys(("needed", "even", "loss beside bias", "quality"), "reproduced")


def test_claims_fail_where_the_data_says_otherwise() -> None:
    assert verdicts(
        {"nothing": 2.0, "loss": 2.0, "bias": 2.0, "bias_and_loss": 2.1},
        {"nothing": 2.0, "loss": 2.0, "bias": 1.8, "bias_and_loss": 2.2},
    ) == dict.fromkeys(("needed", "even", "loss beside bias", "quality"), "not reproduced")


def test_what_was_not_trained_is_not_judged() -> None:
    assert set(verdicts({"loss": 2.0}, {"loss": 2.0}).values()) == {"not measured"}


def test_the_end_of_a_run_counts_and_seeds_are_averaged() -> None:
    first, second = trial(2.0, max_vio={"layers.1": 2.0}), trial(2.0, max_vio={"layers.1": 4.0})
    first.watched[0]["layers.1"] = 99.0
    assert final(paired(balancing, bias=[first, second]), "bias") == {"layers.1": 3.0}


def test_loads_are_picked_out_of_a_monitor_s_record() -> None:
    record = {
        "step": 3,
        "backbone.layers.1.mixer.gate.max_vio": 2.5,
        "backbone.layers.1.mixer.gate.weight_norm": 7.0,
        "mtp.layers.1.mixer.gate.max_vio": 1.5,
    }
    assert loads(record) == {"layers.1": 2.5, "mtp.layers.1": 1.5}
