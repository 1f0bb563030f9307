"""config.json: every dialect is read as the same model, what is written is read by others, contradictions are named."""

import copy
import json
import math
from dataclasses import replace

import pytest

from seqloom.core.errors import ConfigError
from seqloom.nn.stability import Stability
from seqloom.systems.hybrid_lm.config import MtpConfig
from seqloom.systems.hybrid_lm.public_config import public_config, read_public
from tiny_models import VARIANTS

LIBRARY_NAMES = {"mamba": "linear_attention", "attention": "full_attention", "mlp": "mlp", "moe": "moe"}
LETTERS = {"mamba": "M", "attention": "*", "mlp": "-", "moe": "E"}


def as_written(name):
    """A variant without what its pattern does not use, as a config.json can only hold that."""
    config = VARIANTS[name]
    letters = config.pattern + (config.mtp.pattern if config.mtp else "")
    absent = {
        field: None for letter, field in (("*", "attention"), ("-", "mlp"), ("E", "moe")) if letter not in letters
    }
    return replace(config, **absent)


def fields_of(name="mtp", **changes):
    """Fields as we write them, some changed; None removes one."""
    fields = public_config(as_written(name)) | changes
    return {key: value for key, value in fields.items() if value is not None}


def read(fields):
    return read_public(json.loads(json.dumps(fields)), "config.json")


@pytest.mark.parametrize("name", VARIANTS)
def test_what_is_written_is_read_back(name):
    public = read(public_config(as_written(name)))
    assert public.config == as_written(name)
    assert (public.unknown, public.code, public.format) == ({}, (), "fp32")
    assert read(public_config(as_written(name), "bf16")).format == "bf16"


def test_methods_that_no_published_model_uses_are_kept_too():
    config = replace(as_written("mtp"), stability=Stability(qk_norm=True, soft_cap=50.0, soft_clip=(-0.03, 1.03)))
    assert read(public_config(config)).config == config
    assert public_config(config)["model_type"] == "seqloom_hybrid"  # other readers would compute something else
    trained_otherwise = public_config(replace(as_written("mtp"), stability=Stability(z_loss=1e-4)))
    assert trained_otherwise == public_config(as_written("mtp"))
    with pytest.raises(ConfigError, match=r"config\.json: stability: .*qk_nrom"):
        read(fields_of(stability={"qk_nrom": True}))


# ---- dialects ------------------------------------------------------------------------------------------------------


def only_text(fields):
    return {key: value for key, value in fields.items() if key not in ("layers_block_type", "mtp_layers_block_type")}


def only_names(fields):
    lost = ("hybrid_override_pattern", "mtp_hybrid_override_pattern", "num_hidden_layers")
    return {key: value for key, value in fields.items() if key not in lost}


def library_names(fields):
    fields = only_names(fields)
    for key in ("layers_block_type", "mtp_layers_block_type"):
        if key in fields:
            fields[key] = [LIBRARY_NAMES[name] for name in fields[key]]
    return fields


def layer_types(fields):
    fields = library_names(fields)
    fields["layer_types"] = fields.pop("layers_block_type")
    return fields


def with_cuts(fields):
    fields = only_text(fields)
    pattern = fields["hybrid_override_pattern"]
    return fields | {"hybrid_override_pattern": f"{pattern[:2]}|{pattern[2:5]}||{pattern[5:]}"}


def in_one_pattern(fields):
    """Megatron's spelling: the prediction block once for each of its two depths."""
    fields = only_text(fields)
    mtp = fields.pop("mtp_hybrid_override_pattern", None)
    fields.pop("num_nextn_predict_layers", None)
    return fields | {"hybrid_override_pattern": "/".join([fields["hybrid_override_pattern"], *[mtp] * 2 * bool(mtp)])}


def old_names(fields):
    fields = dict(fields)
    for new, old in [
        ("n_groups", "mamba_n_groups"),
        ("conv_kernel", "mamba_d_conv"),
        ("chunk_size", "mamba_chunk_size"),
        ("use_conv_bias", "mamba_conv_bias"),
        ("head_dim", "attention_head_dim"),
        ("n_routed_experts", "num_local_experts"),
    ]:
        if new in fields:
            fields[old] = fields.pop(new)
    del fields["layer_norm_epsilon"], fields["torch_dtype"]
    return fields | {
        "mamba_expand": 2,
        "mamba_dt_min": 1e-3,
        "mamba_dt_max": 0.1,
        "mamba_dt_init_floor": 1e-4,
        "mamba_dt_limit": [0.0, math.inf],
    }


def as_published(fields):
    """What stands in released files and means nothing to a model."""
    return fields | {
        "time_step_limit": [0.0, math.inf],
        "auto_map": {"AutoConfig": "configuration_nemotron_h.NemotronHConfig"},
        "expand": 2,
        "partial_rotary_factor": 1.0,
        "rope_theta": 10000,
        "sliding_window": None,
        "attention_dropout": 0.0,
        "hidden_dropout": 0.0,
        "num_logits_to_keep": 1,
        "use_cache": True,
        "use_mamba_kernels": True,
        "transformers_version": "4.55.4",
        "moe_latent_size": fields.get("moe_latent_size"),
        "rms_norm_eps": 1e-5,
    }


@pytest.mark.parametrize(
    "dialect",
    [only_text, only_names, library_names, layer_types, with_cuts, in_one_pattern, old_names, as_published],
)
@pytest.mark.parametrize("name", VARIANTS)
def test_every_dialect_is_the_same_model(name, dialect):
    public = read(dialect(fields_of(name)))
    assert public.config == as_written(name)
    assert public.unknown == {}
    assert public.mtp_blocks == (as_written(name).mtp is not None)


@pytest.mark.parametrize("limit", [[0.0, math.inf], [0, math.inf], [0.0, {"__float__": "Infinity"}]])
def test_an_open_limit_of_dt_is_read_in_every_spelling(limit):
    assert read(fields_of(time_step_limit=limit)).config == as_written("mtp")


def test_depth_comes_from_the_pattern_and_else_is_the_published_one():
    text = {"layers_block_type": None, "mtp_layers_block_type": None, "mtp_hybrid_override_pattern": None}
    for pattern, depth in [("MEM*EME", 2), ("MEM*EME/*E", 1), ("MEM*EME/*E/*E/*E", 3), ("MEM*|EME/*|E/*E", 2)]:
        config = read(fields_of(**text, hybrid_override_pattern=pattern)).config
        assert config.mtp == MtpConfig(pattern="*E", depth=depth)


def test_more_blocks_than_files_hold_are_left_to_the_weights_to_decide():
    public = read(fields_of(num_nextn_predict_layers=2))
    assert (public.mtp_blocks, public.config) == (2, as_written("mtp"))


def test_without_prediction_layers_the_spelling_of_the_block_means_nothing():
    public = read(fields_of("latent", num_nextn_predict_layers=0, mtp_layers_block_type=["full_attention", "moe"]))
    assert public.config.mtp is None


def test_left_out_fields_have_the_published_values():
    lost = ("n_group", "topk_group", "norm_topk_prob", "layer_norm_epsilon", "norm_eps", "conv_kernel", "use_bias")
    assert read(fields_of("moe", **dict.fromkeys(lost))).config == as_written("moe")


# ---- what does not shape the model ---------------------------------------------------------------------------------


def test_facts_are_carried_unknown_fields_are_reported_and_code_is_named():
    facts = {"eos_token_id": [2, 11], "max_position_embeddings": 4096, "time_step_min": 0.002}
    changed = {"auto_map": {"AutoModel": "evil.Model"}, "trust_remote_code": True, "favourite": "blue"}
    public = read(fields_of("mtp", **facts, **changed))
    assert facts.items() <= public.carried.items()
    assert public.unknown == {"favourite": "blue"}
    assert public.code == ("auto_map", "trust_remote_code")
    written = public_config(public.config, public.format, public.carried)
    assert facts.items() <= written.items()
    assert not changed.keys() & written.keys()
    assert read(written).config == public.config


def test_old_names_of_facts_are_carried_under_the_new():
    assert read(fields_of(mamba_dt_max=0.2)).carried["time_step_max"] == 0.2


def test_what_is_written_is_plain_json_with_both_spellings():
    fields = public_config(VARIANTS["mtp"], "bf16")
    assert json.loads(json.dumps(fields, allow_nan=False)) == fields
    assert fields["hybrid_override_pattern"] == "MEM*EME"
    assert fields["layers_block_type"] == ["mamba", "moe", "mamba", "attention", "moe", "mamba", "moe"]
    assert (fields["num_hidden_layers"], fields["head_dim"], fields["num_nextn_predict_layers"]) == (7, 16, 1)
    assert fields["torch_dtype"] == fields["dtype"] == "bfloat16"
    assert "time_step_limit" not in fields


# ---- what is refused (more of it in test_hostile_folders.py) --------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"num_hidden_layers": 8}, "num_hidden_layers = 8 contradicts the pattern 'MEM*EME' of 7 layers"),
        (
            {"hybrid_override_pattern": "MEM*EMM"},
            "hybrid_override_pattern = 'MEM*EMM' contradicts layers_block_type = 'MEM*EME'",
        ),
        (
            {"mtp_layers_block_type": ["attention", "mlp"]},
            "mtp_hybrid_override_pattern = '*E' contradicts mtp_layers_block_type = '*-'",
        ),
        (
            {"hybrid_override_pattern": "MEM*EME/*-", "mtp_layers_block_type": None},
            "hybrid_override_pattern = '*-' contradicts mtp_hybrid_override_pattern = '*E'",
        ),
        (
            {"hybrid_override_pattern": "MEM*EME/*E/**"},
            "hybrid_override_pattern: 'MEM*EME/*E/**' has the prediction blocks '*E' and '**'",
        ),
        ({"mamba_d_conv": 3}, "conv_kernel = 4 contradicts mamba_d_conv = 3"),
        ({"attention_head_dim": 128}, "head_dim = 16 contradicts attention_head_dim = 128"),
        ({"rms_norm_eps": 1e-6}, "layer_norm_epsilon = 1e-05 contradicts rms_norm_eps = 1e-06"),
        ({"use_conv_bias": True, "mamba_conv_bias": 1}, "use_conv_bias = True contradicts mamba_conv_bias = 1"),
        ({"use_conv_bias": False}, "use_conv_bias: False is not built here, only True"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings: True is not built here, only False"),
        ({"mamba_proj_bias": True}, "mamba_proj_bias: True is not built here, only False"),
        ({"mlp_hidden_act": "silu"}, "mlp_hidden_act: 'silu' is not built here, only 'relu2'"),
        ({"mamba_hidden_act": "gelu"}, "mamba_hidden_act: 'gelu' is not built here, only 'silu'"),
        ({"n_shared_experts": 2}, "n_shared_experts: 2 is not built here"),
        ({"time_step_limit": [0.001, 0.1]}, "time_step_limit: [0.001, 0.1] would clamp dt, and no model here does"),
        ({"time_step_limit": [0.0, "Infinity"]}, "time_step_limit: [0.0, 'Infinity'] would clamp dt"),
        ({"norm_topk_prob": 1}, "norm_topk_prob: 1 is not allowed; it must be true or false"),
        ({"routed_scaling_factor": True}, "routed_scaling_factor: True is not allowed; it must be a number above 0"),
        ({"routed_scaling_factor": 0}, "routed_scaling_factor: 0 is not allowed"),
        ({"n_groups": 2.0}, "n_groups: 2.0 is not allowed; it must be a whole number from 1 to"),
        ({"conv_kernel": 1}, "conv_kernel: 1 is not allowed; it must be a whole number from 2"),
        ({"moe_latent_size": 0}, "moe_latent_size: 0 is not allowed"),
        ({"hidden_size": None}, "the field 'hidden_size' is required by the layer pattern"),
        ({"num_nextn_predict_layers": 65}, "num_nextn_predict_layers: 65 is not allowed"),
        ({"architectures": ["NemotronHModel"]}, "architectures ['NemotronHModel'] are not read here"),
        ({"model_type": "nemotron_h_puzzle"}, "model_type 'nemotron_h_puzzle' is not read here"),
        ({"quantization_config": "fp8"}, "quantization_config: 'fp8' is not allowed; it must be an object"),
        ({"bos_token_id": True}, "bos_token_id: True is not allowed"),
        ({"max_position_embeddings": "1M"}, "max_position_embeddings: '1M' is not allowed"),
        ({"num_key_value_heads": 3}, "4 heads cannot share 3 key-value heads"),
    ],
)
def test_what_cannot_be_right_is_refused_with_the_values(changes, told):
    with pytest.raises(ConfigError) as caught:
        read(fields_of(**changes))
    assert str(caught.value).startswith("config.json: ")
    assert told in str(caught.value)


def test_fields_of_absent_layers_are_not_asked_for():
    public = read(fields_of("dense", n_routed_experts=None, num_experts_per_tok=None, n_shared_experts=3))
    assert public.config.moe is None


# ---- the official class --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", VARIANTS)
def test_the_official_class_reads_ours_and_we_read_what_it_saves(name, tmp_path):
    transformers = pytest.importorskip("transformers")
    config = as_written(name)
    (tmp_path / "config.json").write_text(json.dumps(public_config(config, "bf16", {"eos_token_id": [2, 11]})))
    theirs = transformers.AutoConfig.from_pretrained(tmp_path)
    assert isinstance(theirs, transformers.NemotronHConfig)
    assert theirs.hybrid_override_pattern == config.pattern
    assert (theirs.hidden_size, theirs.vocab_size, theirs.n_groups) == (64, 256, config.mamba.groups)
    assert str(theirs.dtype) == "torch.bfloat16"
    assert theirs.eos_token_id == [2, 11]
    assert theirs.num_nextn_predict_layers == (config.mtp is not None)
    assert theirs.moe_latent_size == (config.moe.latent_width if config.moe else None)
    assert theirs.time_step_limit == (0.0, math.inf)

    theirs.save_pretrained(tmp_path / "saved")
    saved = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert "hybrid_override_pattern" not in saved  # its own dialect
    public = read_public(copy.deepcopy(saved), "config.json")
    assert (public.config, public.format, public.unknown) == (config, "bf16", {})
    assert public.carried["eos_token_id"] == [2, 11]
