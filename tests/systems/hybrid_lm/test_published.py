"""The published models against the tables of their reports: shapes, totals, tensors by name, and training settings."""

import collections
import functools

import pytest
import torch

from seqloom.core.config import check
from seqloom.systems.hybrid_lm.budget import budget, layer_tensors
from seqloom.systems.hybrid_lm.config import HybridConfig
from seqloom.systems.hybrid_lm.folder import disk_tensors
from seqloom.systems.hybrid_lm.published import MODELS
from seqloom.train.schedules import factor

H = "M-M-M-M*-M-M-M-M-M*-M-M-M-M-M*-M-M-M-M-M*-M-M-M-M-M-"
NANO3 = "MEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEMEM*EMEMEMEME"

# Layer by layer, as the files spell it; Ultra as its list of layers does.
PATTERNS = {
    "nemotron_h_4b": H,
    "nemotron_h_8b": H,
    "nemotron_h_47b": (
        "M-M-M-M-M-M-M-M-M*-M-M-M-M-M-M-M-M-M-M*-M-M-M-M-M*-M-M-M-M-M*-M-M-M-M-M-M-M---MM---M-M*-M-M-M-M-M-"
    ),
    "nemotron_h_56b": (
        "M-M-M-M*-M-M-M-M-M*-M-M-M-M-M*-M-M-M-M-M*-M-M-M-M-M*-M-M-M-M-M*-"
        "M-M-M-M-M*-M-M-M-M-M*-M-M-M-M-M*-M-M-M-M-M*-M-M-M-M-M-"
    ),
    "nemotron_nano2_12b": "M-M-M-M*-M-M-M-M*-M-M-M-M*-M-M-M-M*-M-M-M-M*-M-M-M-M*-M-M-M-M-",
    "nemotron_nano2_9b": "M-M-M-MM-M-M-M*-M-M-M*-M-M-M-M*-M-M-M-M*-M-MM-M-M-M-M-M-",
    "nemotron3_nano_4b": "M-M-M-MM-M-M*-M-M*-M-M-M*-M-M-MM*-MMM-M-M-",
    "nemotron3_nano": NANO3,
    "nemotron35_lightning": NANO3,
    "nemotron3_super": ("MEMEMEM*EMEMEMEM*EMEMEMEM*EMEMEMEMEM*EMEMEMEMEM*EMEMEMEMEM*EMEMEMEMEM*EMEMEMEM*EMEMEMEME"),
    "nemotron3_ultra": (
        "MEMEMEM*EMEMEM*EMEMEMEM*EMEMEMEM*EMEMEM*EMEMEMEM*EMEMEMEM*EMEMEM*EMEMEMEM*EMEMEMEM*EMEMEM*EMEMEMEM*EMEMEMEME"
    ),
}

# width, query heads, key-value heads, MLP width, Mamba heads, their width, state width, layers M * - E
DENSE = {
    "nemotron_h_4b": (3072, 32, 8, 12288, 112, 64, 128, (24, 4, 24, 0)),
    "nemotron_h_8b": (4096, 32, 8, 21504, 128, 64, 128, (24, 4, 24, 0)),
    "nemotron_h_47b": (8192, 64, 8, 30720, 256, 64, 256, (45, 5, 48, 0)),
    "nemotron_h_56b": (8192, 64, 8, 32768, 256, 64, 256, (54, 10, 54, 0)),
    "nemotron_nano2_12b": (5120, 40, 8, 20480, 128, 80, 128, (28, 6, 28, 0)),
    "nemotron_nano2_9b": (4480, 40, 8, 15680, 128, 80, 128, (27, 4, 25, 0)),
    "nemotron3_nano_4b": (3136, 40, 8, 12544, 96, 80, 128, (21, 4, 17, 0)),
}

# the same without the MLP; experts, chosen, expert width, shared width, latent width, scaling, layers M * - E
SPARSE = {
    "nemotron3_nano": (2688, 32, 2, 64, 64, 128, (128, 6, 1856, 3712, None, 2.5), (23, 6, 0, 23)),
    "nemotron35_lightning": (2688, 32, 2, 64, 64, 128, (128, 6, 1856, 3712, None, 2.5), (23, 6, 0, 23)),
    "nemotron3_super": (4096, 32, 2, 128, 64, 128, (512, 22, 2688, 5376, 1024, 5.0), (40, 8, 0, 40)),
    "nemotron3_ultra": (8192, 64, 2, 256, 64, 128, (512, 22, 5120, 10240, 2048, 5.0), (48, 12, 0, 48)),
}

# tokens (T), tokens a step, peak and final learning rate, steps of warm-up, tokens of decay (T), λ of the prediction
TRAINING = {
    "nemotron_h_8b": (15, 768 * 8192, 8e-4, 8e-6, 1319, 3.6, None),
    "nemotron_h_56b": (20, 768 * 8192, 8e-4, 8e-6, 1319, 3.6, None),
    "nemotron_nano2_12b": (20, 6_029_312, 4.5e-4, 4.5e-6, 1327, 3.6, None),
    "nemotron3_nano": (25, 25_165_824, 1e-3, 1e-5, 334, 5, None),
    "nemotron3_super": (25, 25_165_824, 4.5e-4, 4.5e-6, 7947, 5, 0.3),
    "nemotron3_ultra": (20, 25_165_824, 2.5e-4, 2.5e-6, 7947, 5, 0.1),
}


def test_the_tables_name_every_model():
    assert set(PATTERNS) == {*DENSE, *SPARSE} == set(MODELS)


@pytest.mark.parametrize("name", MODELS)
def test_a_recipe_has_the_published_shapes(name):
    run = MODELS[name]()
    model = run.model
    assert run.name == name
    assert check(run) == run
    assert model.pattern == PATTERNS[name]
    assert (model.vocab_size, model.norm_eps) == (131_072, 1e-5)
    assert (model.attention.head_width, model.mamba.groups, model.mamba.conv_width) == (128, 8, 4)
    assert model.mamba.chunk == (256 if name == "nemotron3_nano_4b" else 128)
    shared = (model.width, model.attention.heads, model.attention.kv_heads)
    mamba = (model.mamba.heads, model.mamba.head_width, model.mamba.state_width)
    counted = tuple(collections.Counter(model.pattern)[letter] for letter in "M*-E")
    if name in DENSE:
        assert (*shared, model.mlp.hidden_width, *mamba, counted) == DENSE[name]
        assert model.moe is None
        assert model.mtp is None
    else:
        e = model.moe
        moe = (e.experts, e.top_k, e.expert_width, e.shared_width, e.latent_width, e.routed_scaling)
        assert (*shared, *mamba, moe, counted) == SPARSE[name]
        assert (e.expert_groups, e.top_groups, e.normalize_top_k) == (1, 1, True)
        assert (e.bias_rate, e.balance_weight) == (1e-3, 1e-4)
        assert model.mlp is None


@pytest.mark.parametrize("name", MODELS)
def test_the_module_has_the_public_tensors_of_the_formulas(name):
    config, found = MODELS[name]().model, on_disk(name)
    cost = budget(config)
    assert sum(tensor.numel() for tensor in found.values()) == cost.parameters + cost.mtp_parameters
    assert len(found) == cost.tensors
    assert set(found) == set(public_names(config))
    per_layer = collections.Counter(name.split(".")[2] for name in found if name.startswith("backbone.layers."))
    assert per_layer == {str(index): layer_tensors(letter, config) for index, letter in enumerate(config.pattern)}


@pytest.mark.parametrize("name", TRAINING)
def test_a_recipe_has_the_published_training(name):
    run = MODELS[name]()
    tokens, per_step, peak, final, warmup, decay, weight = TRAINING[name]
    train, schedule = run.train, run.train.schedule
    assert run.task.sequence_length == 8192
    assert run.task.batch_rows * run.task.sequence_length == per_step
    assert train.steps == round(tokens * 1e12 / per_step)
    assert schedule.warmup_steps == warmup
    assert round(train.steps * schedule.decay_fraction) == round(decay * 1e12 / per_step)
    rates = [train.optimizer.lr * factor(step, train.steps, schedule) for step in (warmup, train.steps - 1)]
    assert rates == pytest.approx([peak, final])
    assert (train.optimizer.beta1, train.optimizer.beta2, train.optimizer.weight_decay) == (0.9, 0.95, 0.1)
    assert train.clip_norm == 1.0
    if weight is not None:
        assert (run.model.mtp.pattern, run.model.mtp.depth, run.model.mtp.loss_weight) == ("*E", 2, weight)


def test_super_decays_over_the_steps_that_its_report_counts():
    train = MODELS["nemotron3_super"]().train
    assert train.steps == 993_411
    assert round(train.steps * train.schedule.decay_fraction) == 198_682


def test_the_initial_weights_of_nemotron_3_are_those_of_its_recipes():
    stds = {name: MODELS[name]().model.init_std for name in SPARSE}
    assert stds == {
        "nemotron3_nano": 0.0173,
        "nemotron35_lightning": 0.0173,
        "nemotron3_super": 0.014,
        "nemotron3_ultra": 0.014,
    }


@functools.cache
def on_disk(name: str) -> dict[str, torch.Tensor]:
    """Every tensor of a model's folder by its public name, without memory."""
    with torch.device("meta"):
        return dict(disk_tensors(MODELS[name]().model.build()))


def public_names(config: HybridConfig) -> list[str]:
    """The tensor names of the published files, written out layer by layer."""
    names = ["backbone.embeddings.weight", "backbone.norm_f.weight", "lm_head.weight"]
    for index, letter in enumerate(config.pattern):
        names += [f"backbone.layers.{index}.{name}" for name in layer_names(letter, config)]
    if config.mtp is not None:
        for index, letter in enumerate(config.mtp.pattern):
            names += [f"mtp.layers.{index}.{name}" for name in layer_names(letter, config)]
        names += [f"mtp.layers.0.{name}.weight" for name in ("eh_proj", "enorm", "hnorm")]
        names += [f"mtp.layers.{len(config.mtp.pattern) - 1}.final_layernorm.weight"]
    return names


def layer_names(letter: str, config: HybridConfig) -> list[str]:
    if letter == "M":
        mixer = ["in_proj.weight", "out_proj.weight", "conv1d.weight", "conv1d.bias", "A_log", "D", "dt_bias"]
        mixer.append("norm.weight")
    elif letter == "*":
        mixer = [f"{side}_proj.weight" for side in "qkvo"]
    elif letter == "-":
        mixer = ["up_proj.weight", "down_proj.weight"]
    else:
        mixer = ["gate.weight", "gate.e_score_correction_bias"]
        mixer += [f"shared_experts.{way}_proj.weight" for way in ("up", "down")]
        mixer += [f"experts.{e}.{way}_proj.weight" for e in range(config.moe.experts) for way in ("up", "down")]
        if config.moe.latent_width:
            mixer += ["fc1_latent_proj.weight", "fc2_latent_proj.weight"]
    return ["norm.weight", *(f"mixer.{name}" for name in mixer)]
