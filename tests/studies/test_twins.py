from dataclasses import replace

import pytest

from seqloom.core.errors import ConfigError
from seqloom.studies.hybrid import SCALES
from seqloom.studies.twins import attention_twin, mamba_twin, twin
from study_trials import NARROW


@pytest.mark.parametrize("name", SCALES)
def test_twins_are_as_large_within_half_a_percent(name: str) -> None:
    sizes = {
        variant: sum(p.numel() for p in model.build().parameters()) for variant, model in SCALES[name].models.items()
    }
    assert all(size == pytest.approx(sizes["hybrid"], rel=0.005) for size in sizes.values())
    patterns = [model.pattern for model in SCALES[name].models.values()]
    assert [set(pattern) for pattern in patterns] == [{"M", "*", "-"}, {"*", "-"}, {"M", "-"}]


def test_nothing_but_pattern_and_mlp_differs() -> None:
    for other in (attention_twin(NARROW), mamba_twin(NARROW)):
        assert replace(other, pattern=NARROW.pattern, mlp=NARROW.mlp) == NARROW


def test_a_pattern_that_cannot_be_evened_out_is_refused() -> None:
    with pytest.raises(ConfigError, match="'MM' has none"):
        twin(NARROW, "MM")
    with pytest.raises(ConfigError, match="is larger than"):
        twin(NARROW, "MMMMMMMMMM-")
