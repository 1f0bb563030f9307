"""Every recipe fits its environment, and is the same run when it is read back from its file."""

import pytest
import yaml

from seqloom.core.config import check, parse, to_yaml
from seqloom.systems.attention_agent.budget import describe, headline
from seqloom.systems.attention_agent.config import Run
from seqloom.systems.attention_agent.evaluate import checked_facts
from seqloom.systems.attention_agent.recipes import RECIPES


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_whole(name: str) -> None:
    run = check(RECIPES[name]())
    assert run.name == name
    assert parse(Run, yaml.safe_load(to_yaml(run)), name) == run
    assert headline(run.model)["total_parameters"] == describe(run.model)["size"]["total_parameters"]
    assert run.model.training_bytes(run) > 16 * headline(run.model)["total_parameters"]
    if run.task.environment.name.startswith("ale:"):
        pytest.importorskip("ale_py")
    checked_facts(run.model, run.task.environment)
