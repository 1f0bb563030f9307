"""Adapters on disk: PEFT as the oracle in both directions, folding, merging, and what is refused."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import seqloom
from seqloom.core.checkpoint.tensor_folder import TensorFolder
from seqloom.core.errors import CheckpointError, ConfigError
from seqloom.nn.lora import projections
from seqloom.systems.hybrid_lm.adapter import merge, read_model, read_pairs, read_trained
from seqloom.systems.hybrid_lm.adapter_targets import choose_targets
from seqloom.systems.hybrid_lm.config import LoraConfig
from seqloom.systems.hybrid_lm.disk_weights import is_fp32_only
from seqloom.systems.hybrid_lm.model import HybridLM
from tiny_models import VARIANTS, make, tokens

SUPPORTED = ("in_proj", "q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj", "fc1_*", "fc2_*")
"""What PEFT adapts in these models: everything but Mamba's out_proj."""

with_peft = pytest.mark.filterwarnings("ignore")  # of peft and transformers about each other


def write_base(name: str, folder: Path, dtype: torch.dtype = torch.float32) -> Path:
    model = make(name)
    for parameter_name, parameter in model.named_parameters():
        if not is_fp32_only(parameter_name):
            parameter.data = parameter.data.to(dtype)
    folder.mkdir()
    model.write_folder(folder)
    return folder


def adapt(base: Path, lora: LoraConfig | None = None) -> HybridLM:
    """A model with adapters that have learned something."""
    run = seqloom.recipe("finetune").starting_from(str(base))
    torch.manual_seed(0)
    model = dataclasses.replace(run, adapter=lora or LoraConfig(rank=3, alpha=6.0)).build_model().eval()
    for name, parameter in model.named_parameters():
        if "lora_b" in name:
            parameter.data.normal_(std=0.1)
    return model


def write(model: HybridLM, folder: Path) -> Path:
    folder.mkdir()
    model.write_folder(folder)
    return folder


@pytest.fixture(scope="module")
def latent(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, HybridLM, Path]:
    """A base folder, the model with adapters on it, and the folder of its adapters."""
    place = tmp_path_factory.mktemp("latent")
    base = write_base("latent", place / "base")
    model = adapt(base)
    return base, model, write(model, place / "adapter")


def oracle(folder: Path):
    transformers = pytest.importorskip("transformers")
    model = transformers.NemotronHForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    for layer in model.model.layers:
        if hasattr(layer.mixer, "dt_bias"):
            layer.mixer.time_step_limit = (0.0, float("inf"))  # its floor of dt is a fault; see test_transformers
    return model


@pytest.mark.parametrize("lora", [{}, {"rank_stabilised": True}, {"experts": False}], ids=str)
@pytest.mark.parametrize("name", ["dense", "moe", "latent"])
@with_peft
@torch.no_grad()
def test_peft_reads_our_folder(name, lora, tmp_path):
    peft = pytest.importorskip("peft")
    base = write_base(name, tmp_path / "base")
    model = adapt(base, LoraConfig(rank=3, alpha=6.0, targets=SUPPORTED[: 7 if name != "latent" else None], **lora))
    folder = write(model, tmp_path / "adapter")
    theirs = peft.PeftModel.from_pretrained(oracle(base), folder)
    stored, read = load_file(folder / "adapter_model.safetensors"), peft.get_peft_model_state_dict(theirs)
    assert stored.keys() == read.keys()
    logits = theirs(tokens(), use_cache=False).logits
    assert (logits - oracle(base)(tokens(), use_cache=False).logits).abs().max() > 0.1
    torch.testing.assert_close(model(tokens()), logits, atol=2e-5, rtol=0)


@pytest.mark.parametrize("name", ["dense", "moe", "latent"])
@with_peft
@torch.no_grad()
def test_a_folder_of_peft_reads_here(name, tmp_path):
    peft = pytest.importorskip("peft")
    base = write_base(name, tmp_path / "base")
    stacks = ["experts.up_proj", "experts.down_proj"] if name != "dense" else None
    settings = peft.LoraConfig(
        r=3, lora_alpha=6, target_modules=["in_proj", "q_proj", "o_proj", "up_proj", "down_proj"],
        target_parameters=stacks, task_type="CAUSAL_LM",
    )  # fmt: skip
    theirs = peft.get_peft_model(oracle(base), settings).eval()
    for parameter_name, parameter in theirs.named_parameters():
        if "lora_B" in parameter_name:
            parameter.normal_(std=0.1)
    theirs.save_pretrained(tmp_path / "theirs")
    assert not (tmp_path / "theirs/config.json").exists()
    logits = theirs(tokens(), use_cache=False).logits
    torch.testing.assert_close(seqloom.load(tmp_path / "theirs")(tokens()), logits, atol=2e-5, rtol=0)


@pytest.mark.parametrize("stack", ["up_proj", "down_proj"])
@with_peft
@torch.no_grad()
def test_a_single_adapted_stack_goes_both_ways(stack, tmp_path):
    peft = pytest.importorskip("peft")
    base = write_base("moe", tmp_path / "base")
    lora = LoraConfig(rank=3, alpha=6.0, targets=("in_proj", "q_proj", f"*.mixer.experts.{stack}"))
    model = adapt(base, lora)
    folder = write(model, tmp_path / "adapter")
    logits = model(tokens())
    theirs = peft.PeftModel.from_pretrained(oracle(base), folder)
    torch.testing.assert_close(logits, theirs(tokens(), use_cache=False).logits, atol=2e-5, rtol=0)
    torch.testing.assert_close(read_model(folder).eval()(tokens()), logits, atol=2e-5, rtol=0)


@with_peft
def test_peft_refuses_mamba_out_proj_instead_of_leaving_it_out(latent):
    """Why the list of targets must name it: our full adapter is refused there, not half applied."""
    peft = pytest.importorskip("peft")
    base, _, folder = latent
    with pytest.raises(ValueError, match="out_proj"):
        peft.PeftModel.from_pretrained(oracle(base), folder)


@pytest.mark.parametrize("name", VARIANTS)
@torch.no_grad()
def test_folded_equals_unfolded(name, tmp_path):
    model = adapt(write_base(name, tmp_path / "base"))
    folder = write(model, tmp_path / "adapter")
    torch.testing.assert_close(seqloom.load(folder)(tokens()), model(tokens()), atol=2e-5, rtol=0)


@torch.no_grad()
def test_the_prediction_block_is_folded_too(tmp_path):
    model = adapt(write_base("mtp", tmp_path / "base"))
    folded = seqloom.load(write(model, tmp_path / "adapter"))
    ahead = [
        one.look_ahead(one.hidden(tokens())[0], tokens(), None, 2)[0] for one in (model, folded, make("mtp"))
    ]  # fmt: skip
    for mine, theirs, plain in zip(*ahead, strict=True):
        torch.testing.assert_close(mine, theirs, atol=2e-5, rtol=0)
        assert (mine - plain).abs().max() > 0.1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@with_peft
@torch.no_grad()
def test_merged_is_the_folded_model_in_the_format_of_the_base(dtype, tmp_path):
    base = write_base("latent", tmp_path / "base", dtype)
    (base / "tokenizer.json").write_text("{}")
    model = adapt(base)
    folder = write(model, tmp_path / "adapter")
    merge(folder, tmp_path / "merged")
    merged, before = TensorFolder(tmp_path / "merged"), TensorFolder(base)
    assert {name: (e.dtype, e.shape) for name, e in merged.entries.items()} == {
        name: (e.dtype, e.shape) for name, e in before.entries.items()
    }
    assert (tmp_path / "merged/tokenizer.json").exists()
    name = "backbone.layers.0.mixer.in_proj"
    formed = before.read(f"{name}.weight").float() + 2 * model.get_parameter(f"{name}.lora_b") @ model.get_parameter(
        f"{name}.lora_a"
    )
    torch.testing.assert_close(
        merged.read(f"{name}.weight").float(), formed, rtol=2**-8 if dtype.itemsize == 2 else 1e-5, atol=1e-6
    )
    one, other = seqloom.load(tmp_path / "merged"), seqloom.load(folder)
    for parameter_name, parameter in one.named_parameters():
        assert torch.equal(parameter, other.get_parameter(parameter_name)), parameter_name
    if dtype == torch.float32:
        logits = oracle(tmp_path / "merged")(tokens(), use_cache=False).logits
        torch.testing.assert_close(model(tokens()), logits, atol=2e-5, rtol=0)


def test_written_factors_come_back_bit_for_bit(latent):
    base, model, folder = latent
    other = adapt(base)
    for parameter in other.parameters():
        if parameter.requires_grad:
            parameter.data.zero_()
    read_trained(other, folder)
    for (name, mine), theirs in zip(model.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(mine, theirs), name


def test_an_adapter_folder_holds_no_model(latent):
    _, model, folder = latent
    assert sorted(path.name for path in folder.iterdir()) == [
        "adapter_config.json", "adapter_model.safetensors", "config.json",
    ]  # fmt: skip
    stored = sum(tensor.numel() for tensor in load_file(folder / "adapter_model.safetensors").values())
    assert stored == sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def test_partial_targets_are_named_in_full(tmp_path):
    lora = LoraConfig(rank=2, targets=("in_proj", "backbone.layers.3.mixer.q_proj", "up_proj"), min_coverage=0.5)
    folder = write(adapt(write_base("moe", tmp_path / "base"), lora), tmp_path / "adapter")
    fields = json.loads((folder / "adapter_config.json").read_text())
    assert fields["target_modules"] == ["in_proj", "up_proj", "q_proj"]
    lora = dataclasses.replace(lora, targets=("backbone.layers.0.*", "q_proj", "up_proj"), min_coverage=0.3)
    folder = write(adapt(tmp_path / "base", lora), tmp_path / "other")
    fields = json.loads((folder / "adapter_config.json").read_text())
    assert fields["target_modules"] == [
        "model.layers.0.mixer.in_proj", "model.layers.0.mixer.out_proj", "up_proj", "q_proj",
    ]  # fmt: skip
    assert fields["target_parameters"] == ["experts.up_proj"]


def test_adapters_stored_for_each_expert_are_read(latent, tmp_path):
    _, model, folder = latent
    shutil.copytree(folder, tmp_path / "split")
    tensors = load_file(folder / "adapter_model.safetensors")
    for half, module in (("up_proj", f"{EXPERTS}.base_layer"), ("down_proj", EXPERTS)):
        a = tensors.pop(f"{module}.lora_A.weight").unflatten(0, (8, 3))
        b = tensors.pop(f"{module}.lora_B.weight").unflatten(1, (3, 8))
        for expert in range(8):
            tensors[f"{EXPERTS}.{expert}.{half}.lora_A.weight"] = a[expert].clone()
            tensors[f"{EXPERTS}.{expert}.{half}.lora_B.weight"] = b[:, :, expert].clone()
    save_file(tensors, tmp_path / "split/adapter_model.safetensors")
    with torch.no_grad():
        torch.testing.assert_close(seqloom.load(tmp_path / "split")(tokens()), model(tokens()), atol=2e-5, rtol=0)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"peft_type": "LOHA"}, "peft_type 'LOHA' is not supported"),
        ({"use_dora": True}, "use_dora = True is not supported"),
        ({"bias": "all"}, "bias = 'all' is not supported"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"rank_pattern": {"q_proj": 8}}, "rank_pattern"),
        ({"alpha_pattern": {"q_proj": 8}}, "alpha_pattern"),
        ({"layer_replication": [[0, 2]]}, "layer_replication"),
        ({"lora_bias": True}, "lora_bias"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights = 'pissa'"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out"),
        ({"brand_new_method": {"x": 1}}, "brand_new_method"),
        ({"r": 0}, "r = 0 is not a rank"),
        ({"r": True}, "r = True is not a rank"),
        ({"r": 4}, "the model and rank 4 ask for"),
        ({"lora_alpha": "8"}, "lora_alpha = '8' is not a number"),
        ({"use_rslora": 1}, "use_rslora = 1 is neither"),
        ({"target_parameters": "x"}, "target_parameters = 'x'"),
        ({"base_model_name_or_path": None}, "base_model_name_or_path = None does not name"),
        (
            {"base_model_name_or_path": "/nowhere/model"},
            "sits on the model /nowhere/model, and there is no such folder",
        ),
    ],
    ids=str,
)
def test_what_an_adapter_config_asks_for_in_vain(changes, said, latent, tmp_path):
    shutil.copytree(latent[2], tmp_path / "hostile")
    path = tmp_path / "hostile/adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(CheckpointError, match="adapter") as caught:
        seqloom.load(tmp_path / "hostile")
    assert said in str(caught.value)


def test_fields_that_are_switched_off_do_no_harm(latent, tmp_path):
    shutil.copytree(latent[2], tmp_path / "adapter")
    path = tmp_path / "adapter/adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"use_dora": False, "next_year": None, "others": {}}))
    seqloom.load(tmp_path / "adapter")


def both(tensors: dict, module: str, rows: int | None = None, out: int | None = None) -> dict:
    """Factors of one more module, shaped like those of the first layer's in_proj if nothing else is said."""
    a, b = (tensors[f"{NAME}.lora_{half}.weight"] for half in "AB")
    a, b = a.new_zeros(3, rows or a.shape[1]), b.new_zeros(out or b.shape[0], 3)
    return {f"{module}.lora_A.weight": a, f"{module}.lora_B.weight": b}


NAME, EXPERTS = "base_model.model.model.layers.0.mixer.in_proj", "base_model.model.model.layers.1.mixer.experts"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t.pop(f"{NAME}.lora_A.weight"), r"in_proj\.lora_A\.weight' is missing"),
        (lambda t: t.update({f"{NAME}.lora_A.weight": torch.zeros(3, 65)}), r"\(3, 65\); the model and rank 3 ask for"),
        (lambda t: t.update({f"{NAME}.lora_A.weight": torch.zeros(3, 64).int()}), "torch.int32"),
        (lambda t: t.update({f"{NAME}.weight": torch.zeros(3)}), "is not supported; known are lora_A and lora_B"),
        (lambda t: t.update(both(t, NAME.replace("layers.0", "layers.9"))), "is nothing in this model"),
        (lambda t: t.update(both(t, f"{EXPERTS}.8.up_proj")), "is nothing in this model"),
        (lambda t: t.update(both(t, f"{EXPERTS}.7.up_proj", rows=24, out=32)), "there twice, also in a stack"),
        (lambda t: t.update(both(t, NAME.replace(".model.layers", ".backbone.layers"))), "in_proj' are there twice"),
        (lambda t: t.update({f"{NAME}.lora_magnitude_vector": torch.zeros(3)}), "lora_magnitude_vector"),
    ],
)  # fmt: skip
def test_tensors_that_do_not_fit_are_named(change, said, latent, tmp_path):
    shutil.copytree(latent[2], tmp_path / "hostile")
    path = tmp_path / "hostile/adapter_model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)
    with pytest.raises(CheckpointError, match=said):
        seqloom.load(tmp_path / "hostile")


def test_pickles_are_not_read(latent, tmp_path):
    shutil.copytree(latent[2], tmp_path / "hostile")
    (tmp_path / "hostile/adapter_model.safetensors").rename(tmp_path / "hostile/adapter_model.bin")
    with pytest.raises(CheckpointError, match=r"adapter_model\.bin.*safetensors"):
        read_pairs(tmp_path / "hostile", VARIANTS["latent"])


def test_an_adapter_on_an_adapter_is_refused(latent, tmp_path):
    shutil.copytree(latent[2], tmp_path / "second")
    path = tmp_path / "second/adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": str(latent[2])}))
    with pytest.raises(CheckpointError, match="is itself an adapter; merge that one first"):
        seqloom.load(tmp_path / "second")


def test_a_base_that_moved_is_found_by_merge(latent, tmp_path):
    base, _, folder = latent
    moved = shutil.copytree(base, tmp_path / "moved")
    shutil.copytree(folder, tmp_path / "adapter")
    path = tmp_path / "adapter/adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": "/nowhere"}))
    merge(tmp_path / "adapter", tmp_path / "merged", moved)
    with pytest.raises(CheckpointError, match="no such folder"):
        merge(tmp_path / "adapter", tmp_path / "again")
    with torch.no_grad():
        assert torch.equal(seqloom.load(tmp_path / "merged")(tokens()), seqloom.load(folder)(tokens()))


def choose(name: str, **changes) -> dict:
    return choose_targets(VARIANTS[name], LoraConfig(**changes)).coverage()


def test_by_default_every_projection_of_every_kind_is_reached():
    table = choose("mtp")
    assert list(table) == ["M", "E", "*", "mtp"]
    for row in table.values():
        assert row["adapted_layers"] == row["layers"] > 0
        assert row["untouched"] == []
    assert table["M"]["projections"] == ["in_proj", "out_proj"]
    assert "experts.up_proj" in table["E"]["projections"]
    counted = sum(p.factor_numbers(16) for p in projections(make("mtp")).values())
    assert sum(row["parameters"] for row in table.values()) == counted


def test_without_experts_the_rest_of_their_layer_is_reached():
    table = choose("latent", experts=False)
    assert table["E"]["untouched"] == ["experts.up_proj", "experts.down_proj"]
    assert table["E"]["adapted_layers"] == table["E"]["layers"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"targets": ("q_proj", "k_proj", "v_proj", "o_proj")},
            r"0 of 3 Mamba-2 layers.*in_proj, out_proj.*'M' to ada",
        ),
        ({"targets": ("*_proj",), "leave_out": ("mtp",)}, "no 'mtp' layers; it has M, -, \\*"),
        ({"targets": ("*", "qkv")}, "'qkv' matches no projection; there are down_proj, in_proj"),
        ({"targets": ("backbone.layers.0.*", "q_proj", "up_proj")}, "1 of 3 Mamba-2 layers"),
        ({"targets": ("*.lm_head",)}, "matches no projection"),
    ],
)
def test_too_little_coverage_is_refused(changes, said):
    with pytest.raises(ConfigError, match=said):
        choose("dense", **changes)


def test_too_little_coverage_can_be_asked_for_by_name():
    assert choose("dense", targets=("q_proj",), leave_out=("M", "-"))["M"]["adapted_layers"] == 0
    assert choose("dense", leave_out=("M",))["M"]["projections"] == []
    assert choose("dense", targets=("backbone.layers.0.*", "q_proj", "up_proj"), min_coverage=0.3)["M"]["layers"] == 3


def test_matrices_divided_by_their_norm_are_refused():
    stability = dataclasses.replace(VARIANTS["dense"].stability, sigma_reparam=True)
    with pytest.raises(ConfigError, match="sigma_reparam"):
        choose_targets(dataclasses.replace(VARIANTS["dense"], stability=stability), LoraConfig())


def test_dropout_of_routed_experts_is_refused():
    with pytest.raises(ConfigError, match=r"adapter\.dropout: 0\.1 is not possible for routed experts"):
        choose("moe", dropout=0.1)
    choose("moe", dropout=0.1, experts=False)
