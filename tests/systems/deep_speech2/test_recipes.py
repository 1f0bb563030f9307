"""Every recipe is complete, survives its own file, and has the size it promises."""

import pytest
import torch
import yaml

from seqloom.core.config import parse, to_yaml
from seqloom.systems.deep_speech2.budget import describe, headline, parameters
from seqloom.systems.deep_speech2.config import Run
from seqloom.systems.deep_speech2.recipes import RECIPES


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_complete(name):
    run = RECIPES[name]()
    assert run.name == name
    assert parse(Run, yaml.safe_load(to_yaml(run)), "run.yaml") == run
    with torch.device("meta"):
        model = run.model.build()
    assert (
        sum(p.numel() for p in model.parameters()) == parameters(run.model) == headline(run.model)["total_parameters"]
    )
    assert describe(run.model)["time"]["can_stream"].startswith("yes" if name == "an4_streaming" else "no")
    assert run.model.training_bytes(run) > 16 * parameters(run.model)


def test_the_large_recipes_have_the_published_sizes():
    assert parameters(RECIPES["english"]().model) == pytest.approx(100e6, rel=0.05)
    assert parameters(RECIPES["mandarin"]().model) == pytest.approx(100e6, rel=0.1)
