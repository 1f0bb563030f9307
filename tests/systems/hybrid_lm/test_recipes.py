"""Every recipe is a complete, valid run whose model can be built."""

import pytest
import torch
import yaml

import seqloom
from seqloom.core.config import check, parse, to_yaml
from seqloom.core.rooms import recipes
from seqloom.systems.hybrid_lm.budget import budget
from seqloom.systems.hybrid_lm.config import Run
from seqloom.systems.hybrid_lm.published import MODELS
from seqloom.systems.hybrid_lm.training_memory import training_bytes

NAMES = [name for name in recipes() if name.startswith("hybrid_lm/")]
OURS = [name for name in NAMES if name.split("/")[1] not in MODELS]


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_is_valid_and_survives_its_file(name):
    run = seqloom.recipe(name)
    assert check(run) == run
    assert parse(Run, yaml.safe_load(to_yaml(run)), "run.yaml") == run


@pytest.mark.parametrize("name", OURS)
def test_a_recipe_builds_what_its_budget_counts(name):
    run = seqloom.recipe(name)
    with torch.device("meta"):
        model = run.model.build()
    cost = budget(run.model)
    counted = sum(tensor.numel() for tensor in model.state_dict().values())
    assert counted == cost.parameters + cost.mtp_parameters
    assert training_bytes(run) > (16 if run.adapter is None else 4) * counted


def test_the_demo_model_has_every_part():
    model = seqloom.recipe("hybrid_lm/tiny").model
    assert set(model.pattern) == set("M*-E")
    assert model.moe.latent_width
    assert model.mtp
    assert 4e6 < budget(model).parameters + budget(model).mtp_parameters < 6e6
