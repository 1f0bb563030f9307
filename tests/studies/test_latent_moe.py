import pytest

from seqloom.studies import latent_moe
from seqloom.studies.latent_moe import SCALES, Options, findings, latent_counterpart, study
from seqloom.systems.hybrid_lm.config import MoeConfig
from seqloom.train.observer import Observer
from study_trials import paired, trial


def test_the_flop_rule_gives_the_published_choice() -> None:
    """Nemotron 3 Super: 128 experts, 6 of them, in width 4096 become 512 in width 1024, 22 of them."""
    plain = MoeConfig(experts=128, top_k=6, expert_width=2688, shared_width=5376)
    latent = latent_counterpart(plain, 4096)
    assert (latent.experts, latent.top_k, latent.latent_width) == (512, 22, 1024)


@pytest.mark.parametrize("name", SCALES)
def test_both_models_cost_the_same(name: str) -> None:
    models = {variant: model.build() for variant, model in SCALES[name].models.items()}
    sizes = {variant: sum(p.numel() for p in model.parameters()) for variant, model in models.items()}
    assert sizes["latent_moe"] == pytest.approx(sizes["moe"], rel=0.02)
    assert sizes["latent_moe_mtp"] == pytest.approx(sizes["moe_mtp"], rel=0.02)
    claims = {claim.name: claim for claim in findings(paired(latent_moe, moe=[trial(2.0)])).claims}
    assert claims["cost"].verdict == "reproduced"
    assert claims["latent"].verdict == "not measured"


def verdicts(**trials: list) -> dict[str, str]:
    return {claim.name: claim.verdict for claim in findings(paired(latent_moe, **trials)).claims}


def test_a_difference_within_the_noise_of_seeds_is_not_shown() -> None:
    clear = verdicts(
        moe=[trial(2.0), trial(2.2)],
        latent_moe=[trial(1.9), trial(2.09)],
        moe_mtp=[trial(1.99), trial(2.21)],
        latent_moe_mtp=[trial(2.0), trial(2.2001)],
    )
    assert clear == {
        "cost": "reproduced", "latent": "reproduced", "mtp with moe": "reproduced",
        "mtp with latent_moe": "not reproduced",
    }  # fmt: skip
    noisy = verdicts(moe=[trial(2.0), trial(2.2)], latent_moe=[trial(1.7), trial(2.25)])
    assert noisy["latent"] == "not reproduced"


@pytest.mark.usefixtures("narrow_twins")
def test_the_study_trains_four_models(texts, tmp_path) -> None:
    class Quiet(Observer):
        def on_message(self, text: str) -> None:
            pass

    found = study(Options(data=(str(texts),), steps=4, seeds=1), tmp_path, Quiet())
    assert {run["variant"] for run in found.data["runs"]} == {"moe", "latent_moe", "moe_mtp", "latent_moe_mtp"}
    assert found.setting["latent_moe"].startswith("7 of 32 experts of 32 in width 8")
    assert "latent_moe_mtp  latent_moe" in found.as_text()
