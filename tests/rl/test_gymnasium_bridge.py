"""Environments of gymnasium that fit, and the refusal of those that do not."""

import pytest

from seqloom.core.errors import ConfigError
from seqloom.rl.config import EnvironmentConfig
from seqloom.rl.environment import make_environment

pytest.importorskip("gymnasium")
HERE = "gymnasium:tests.rl.pixel_environments"


def test_a_registered_environment_with_images_comes_in() -> None:
    environment = make_environment(EnvironmentConfig(name=f"{HERE}:Blinking-v0"))
    assert environment.facts[:2] == (24, 24)
    assert len(environment.facts.actions) == 3
    first, _ = environment.reset(seed=3)
    again, _ = environment.reset(seed=3)
    assert (first == again).all()
    _, reward, *_ = environment.step(1)
    assert reward == float(first.any())
    environment.close()


@pytest.mark.parametrize(("name", "needed"), [("Numbers", "Box of uint8"), ("Steering", "Discrete")])
def test_spaces_that_do_not_fit_are_refused_with_what_is_needed(name: str, needed: str) -> None:
    with pytest.raises(ConfigError, match=needed):
        make_environment(EnvironmentConfig(name=f"{HERE}:{name}-v0"))
