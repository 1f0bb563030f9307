"""The counting formulas against every published figure, and against modules and states themselves."""

import dataclasses

import pytest
import torch

from seqloom.numerics.precision import PrecisionConfig, apply_precision
from seqloom.systems.hybrid_lm.budget import budget, describe, headline, state_budget
from seqloom.systems.hybrid_lm.config import HybridConfig
from seqloom.systems.hybrid_lm.model import HybridLM
from seqloom.systems.hybrid_lm.published import MODELS
from tiny_models import VARIANTS, make

# parameters without and in the prediction block (Nemotron-H, Table 1; Nano 2; Nemotron 3 reports and files)
TOTALS = {
    "nemotron_h_4b": (4_489_223_040, 0),
    "nemotron_h_8b": (8_100_852_736, 0),
    "nemotron_h_47b": (46_791_554_816, 0),
    "nemotron_h_56b": (56_324_350_464, 0),
    "nemotron_nano2_12b": (12_310_001_152, 0),
    "nemotron_nano2_9b": (8_888_227_328, 0),
    "nemotron3_nano_4b": (3_973_556_832, 0),
    "nemotron3_nano": (31_577_940_288, 0),
    "nemotron35_lightning": (31_577_940_288, 1_335_325_952),
    "nemotron3_super": (120_668_707_840, 2_942_325_248),
    "nemotron3_ultra": (549_308_993_536, 11_215_610_368),
}

# billions touched by a token: without embedding and head, with the head, with both
ACTIVE = {
    "nemotron3_nano": (2.875, 3.228, 3.580),
    "nemotron35_lightning": (2.875, 3.228, 3.580),
    "nemotron3_super": (11.696, 12.233, 12.770),
    "nemotron3_ultra": (53.911, 54.985, 56.059),
}

TENSORS = {
    "nemotron3_nano_4b": 263,
    "nemotron3_nano": 6_243,
    "nemotron35_lightning": 6_513,
    "nemotron3_super": 42_683,
    "nemotron3_ultra": 51_023,
}

# inner width, conv channels, in_proj rows, key-value bytes a token, SSM elements, their FP32 MiB, conv elements,
# tokens at which keys and values weigh as much as the state
STATES = {
    "nemotron_h_4b": (7168, 9216, 16496, 16_384, 22_020_096, 84.0, 884_736, 5_484),
    "nemotron_h_8b": (8192, 10240, 18560, 16_384, 25_165_824, 96.0, 983_040, 6_264),
    "nemotron_h_47b": (16384, 20480, 37120, 20_480, 188_743_680, 720.0, 3_686_400, 37_224),
    "nemotron_h_56b": (16384, 20480, 37120, 40_960, 226_492_416, 864.0, 4_423_680, 22_334),
    "nemotron_nano2_12b": (10240, 12288, 22656, 24_576, 36_700_160, 140.0, 1_376_256, 6_085),
    "nemotron_nano2_9b": (10240, 12288, 22656, 16_384, 35_389_440, 135.0, 1_327_104, 8_802),
    "nemotron3_nano_4b": (7680, 9728, 17504, 16_384, 20_643_840, 78.75, 817_152, 5_140),
    "nemotron3_nano": (4096, 6144, 10304, 6_144, 12_058_624, 46.0, 565_248, 8_035),
    "nemotron35_lightning": (4096, 6144, 10304, 6_144, 12_058_624, 46.0, 565_248, 8_035),
    "nemotron3_super": (8192, 10240, 18560, 8_192, 41_943_040, 160.0, 1_638_400, 20_880),
    "nemotron3_ultra": (16384, 18432, 35072, 12_288, 100_663_296, 384.0, 3_538_944, 33_344),
}


def test_the_tables_name_every_model():
    assert set(TOTALS) == set(STATES) == set(MODELS)
    assert set(ACTIVE) == {name for name in MODELS if model(name).moe}


@pytest.mark.parametrize("name", MODELS)
def test_totals_are_exact(name):
    cost = budget(model(name))
    assert (cost.parameters, cost.mtp_parameters) == TOTALS[name]


@pytest.mark.parametrize("name", MODELS)
def test_what_a_token_touches_is_exact(name):
    cost, table = budget(model(name)), model(name).vocab_size * model(name).width
    if name in ACTIVE:
        active = (cost.active, cost.active_with_head, cost.active_with_embeddings)
        assert tuple(round(number / 1e9, 3) for number in active) == ACTIVE[name]
    else:
        assert cost.active_with_embeddings == cost.parameters
    assert cost.active_with_head - cost.active == cost.active_with_embeddings - cost.active_with_head == table


@pytest.mark.parametrize("name", TENSORS)
def test_tensor_counts_are_those_of_the_index_files(name):
    assert budget(model(name)).tensors == TENSORS[name]


def test_stacked_experts_are_two_tensors_a_layer():
    cost, config = budget(model("nemotron3_super")), model("nemotron3_super")
    layers = config.pattern.count("E") + config.mtp.pattern.count("E")
    assert cost.tensors - cost.stacked_tensors == layers * (2 * 512 - 2)


@pytest.mark.parametrize("name", MODELS)
def test_the_state_of_a_sequence_is_exact(name):
    state = state_budget(model(name))
    found = (
        *(state.inner_width, state.conv_channels, state.in_proj_rows, state.kv_bytes_per_token),
        *(state.ssm_elements, state.ssm_bytes / 2**20, state.conv_elements, state.crossover_tokens),
    )
    assert found == STATES[name]
    assert state.state_bytes == 4 * state.ssm_elements + 2 * state.conv_elements
    assert state.cache_bytes(1000) == 1000 * state.kv_bytes_per_token + state.state_bytes


def test_the_fp32_state_of_ultra_weighs_as_much_as_65536_tokens_of_fp8_keys_and_values():
    state = state_budget(model("nemotron3_ultra"))
    assert state.ssm_bytes == 65_536 * state.kv_bytes_per_token // 2


@pytest.mark.parametrize("name", VARIANTS)
def test_formulas_equal_module_and_state(name):
    config = VARIANTS[name]
    with torch.device("meta"):
        built = HybridLM(config)
    cost, tensors = budget(config), built.state_dict()
    assert sum(tensor.numel() for tensor in tensors.values()) == cost.parameters + cost.mtp_parameters
    assert len(tensors) == cost.stacked_tensors
    kept = [name for name in tensors if name.endswith(("A_log", ".D", "dt_bias", "e_score_correction_bias"))]
    wide = {name: 4 if name in kept else 2 for name in tensors}
    assert sum(wide[name] * tensor.numel() for name, tensor in tensors.items()) == cost.weight_bytes_in_bf16


@torch.no_grad()
@pytest.mark.parametrize("name", VARIANTS)
def test_the_engine_holds_what_its_figure_says(name):
    running, config, tokens = make(name), VARIANTS[name], 9
    apply_precision(running, PrecisionConfig(activations="bf16"))  # what the figure counts with
    states = running.new_states(batch=2)
    cost = state_budget(config)
    assert sum(state.nbytes for state in states if state) == 2 * cost.state_bytes_held_here
    running(torch.arange(2 * tokens).reshape(2, tokens), states=states)
    held = sum(state.nbytes for state in states if state)
    assert held == 2 * (cost.state_bytes_held_here + tokens * cost.kv_bytes_per_token)


def test_without_attention_or_mamba_nothing_is_counted_for_it():
    base = VARIANTS["dense"]
    recurrent = state_budget(dataclasses.replace(base, pattern="M-", attention=None))
    assert (recurrent.kv_bytes_per_token, recurrent.crossover_tokens) == (0, None)
    transformer = state_budget(dataclasses.replace(base, pattern="*-", mamba=None))
    assert (transformer.state_bytes, transformer.state_bytes_held_here, transformer.crossover_tokens) == (0, 0, 0)


def test_what_is_shown_are_the_same_figures():
    config = model("nemotron3_super")
    shown, cost = describe(config), budget(config)
    assert shown["size"]["layer_kinds"] == "40 Mamba-2, 8 attention, 40 mixture of experts"
    assert shown["size"]["total_parameters"] == 123_611_033_088 == headline(config)["total_parameters"]
    assert dataclasses.asdict(cost).items() <= shown["size"].items()
    memory = shown["memory_of_a_sequence"]
    assert memory["cache_bytes_at_131072_tokens"] == 131_072 * 8192 + 160 * 2**20 + 2 * 1_638_400


def test_activation_checkpointing_and_micro_batches_lower_the_training_estimate():
    import seqloom
    from seqloom.systems.hybrid_lm.training_memory import training_bytes

    run = seqloom.recipe("hybrid_lm/tiny")
    small = dataclasses.replace(run, task=dataclasses.replace(run.task, micro_rows=1))
    recompute = dataclasses.replace(run, train=dataclasses.replace(run.train, activation_checkpointing=True))
    assert training_bytes(small) < training_bytes(run)
    assert training_bytes(recompute) < training_bytes(run)


def model(name: str) -> HybridConfig:
    return MODELS[name]().model
