from dataclasses import replace

import torch

from seqloom.studies.decoding import measure, step_bytes
from seqloom.studies.twins import attention_twin, mamba_twin
from study_trials import NARROW

MODELS = {"hybrid": NARROW, "transformer": attention_twin(NARROW), "mamba": mamba_twin(NARROW)}


def test_memory_is_what_the_formula_says_and_grows_only_with_attention(tmp_path) -> None:
    points, _ = measure(MODELS, [16, 64], tmp_path / "times.json")
    assert [(point.model, point.context) for point in points] == [(m, c) for c in (16, 64) for m in MODELS]
    assert all(point.state_bytes == point.predicted_state_bytes for point in points)
    assert all(point.seconds > 0 for point in points)
    held = {(point.model, point.context): point.state_bytes for point in points}
    assert held["mamba", 16] == held["mamba", 64]
    assert held["transformer", 64] == 4 * held["transformer", 16]


def test_a_step_moves_weights_states_both_ways_and_all_keys_and_values() -> None:
    model = NARROW.build()
    states = model.new_states(1)
    model(torch.zeros(1, 24, dtype=torch.int64), states=states)
    weights = sum(p.nbytes for p in model.parameters()) - model.backbone.embeddings.weight.nbytes
    kinds = [sum(s.nbytes for s in states if s is not None and hasattr(s, name)) for name in ("lengths", "ssm")]
    assert step_bytes(NARROW, 24) == weights + kinds[0] + 2 * kinds[1]


def test_other_models_are_measured_anew(tmp_path) -> None:
    path = tmp_path / "times.json"
    first = measure({"hybrid": NARROW}, [16], path)
    assert measure({"hybrid": NARROW}, [16], path) == first
    assert measure({"hybrid": replace(NARROW, vocab_size=328)}, [16], path)[0] != first[0]
