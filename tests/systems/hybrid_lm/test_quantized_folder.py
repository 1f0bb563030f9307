"""Quantized folders: written in two layouts, read here exactly, by hand from the published description of the tensors,
and by transformers with compressed-tensors; and what is wrong with one is named."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import seqloom
from seqloom.core.errors import CheckpointError, ConfigError
from seqloom.nn.linear import Linear
from seqloom.nn.stability import Stability
from seqloom.quantize.calibrate import calibrate
from seqloom.quantize.config import QuantizeConfig
from seqloom.quantize.sites import sites
from seqloom.quantize.weights import quantize_weights, simulated
from seqloom.systems.hybrid_lm.convert import convert
from seqloom.systems.hybrid_lm.disk_weights import disk_weights
from seqloom.systems.hybrid_lm.folder_facts import read_facts
from seqloom.systems.hybrid_lm.kept_layers import fixed_format, kept_sites, refuse_impossible
from seqloom.systems.hybrid_lm.model import HybridLM
from seqloom.systems.hybrid_lm.quantize import fold_methods
from seqloom.systems.hybrid_lm.quantized_writing import QuantizedModel
from tiny_models import VARIANTS, make, tokens

E2M1 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])


def quantized(variant: str, **settings: object) -> QuantizedModel:
    model, config = make(variant), QuantizeConfig(**settings)
    everything = sites(model)
    kept = kept_sites(model.config, everything, config)
    chosen = [site for site in everything if site.name not in kept]
    refuse_impossible(chosen, config)
    formats = {site.name: fixed_format(site, config) for site in chosen}
    weights = quantize_weights(chosen, formats, config.weights, lambda share: None)
    calibration = calibrate(model, chosen, lambda: model(tokens()))
    return QuantizedModel(model, config, formats, weights, calibration, kept)


def write(result: QuantizedModel, folder: Path) -> Path:
    folder.parent.mkdir(exist_ok=True)
    result.write(folder, {"of": "a test"}, report_name="quantization.json", carried={}, carry_from=folder.parent)
    return folder


def by_hand(tensors: dict[str, torch.Tensor], module: str) -> torch.Tensor:
    """The values of a layer, from the description of the layouts alone."""
    if f"{module}.weight_packed" in tensors or tensors[f"{module}.weight"].dtype == torch.uint8:
        inverse = f"{module}.weight_packed" in tensors
        packed = tensors[f"{module}.weight_packed" if inverse else f"{module}.weight"]
        codes = torch.stack((packed & 15, packed >> 4), -1).flatten(1).long()
        blocks = tensors[f"{module}.weight_scale"].float().repeat_interleave(16, 1)
        scale = 1 / tensors[f"{module}.weight_global_scale"] if inverse else tensors[f"{module}.weight_scale_2"]
        return E2M1[codes] * blocks * scale
    return tensors[f"{module}.weight"].float() * tensors[f"{module}.weight_scale"]


def matrices(result: QuantizedModel) -> dict[str, torch.Tensor]:
    """What every quantized layer was meant to hold, by its name on disk."""
    return {
        re.sub(r"experts\.", f"experts.{number}.", site, count=1) if len(stack) > 1 else site: each.dequantize()
        for site, stack in result.weights.items()
        for number, each in enumerate(stack)
    }


CASES = {
    "nvfp4": ("moe", {"recipe": "nvfp4", "kept": "linears", "weights": "four_over_six"}),
    "w4a16": ("dense", {"recipe": "nvfp4_w4a16", "weights": "mse"}),
    "fp8": ("mtp", {"recipe": "fp8", "kv_cache": "fp8"}),
    "mixed": ("moe", {"recipe": "mixed"}),
    "compressed_nvfp4": ("dense", {"recipe": "nvfp4", "layout": "compressed-tensors"}),
    "compressed_w4a16": ("dense", {"recipe": "nvfp4_w4a16", "layout": "compressed-tensors", "kept": "linears"}),
    "compressed_fp8": ("dense", {"recipe": "fp8", "layout": "compressed-tensors"}),
    "compressed_around_experts": (
        "moe",
        {"recipe": "nvfp4", "layout": "compressed-tensors", "keep": ("*.experts.*",)},
    ),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    made = {}

    def get(case: str) -> tuple[QuantizedModel, Path]:
        if case not in made:
            variant, settings = CASES[case]
            result = quantized(variant, **settings)
            made[case] = result, write(result, tmp_path_factory.mktemp(case) / "folder")
        return made[case]

    return get


@pytest.mark.parametrize("case", CASES)
def test_what_was_meant_is_read_exactly(case: str, folders) -> None:
    result, folder = folders(case)
    tensors, disk, wanted = load_file(folder / "model.safetensors"), disk_weights(folder), matrices(result)
    assert len(wanted) > 5
    for module, values in wanted.items():
        found = disk.dequantized(f"{module}.weight")
        assert torch.equal(found, by_hand(tensors, module))
        if result.config.layout == "modelopt" or result.formats.get(module) == "fp8":
            assert torch.equal(found, values)
        else:  # the stored reciprocal changes the last bit of a scale
            torch.testing.assert_close(found, values, rtol=2.0**-22, atol=0)
    loaded, source = dict(seqloom.load(folder).state_dict()), result.model.state_dict()
    for name, tensor in loaded.items():
        module = name.removesuffix(".weight")
        if module in wanted:
            assert torch.equal(tensor, disk.dequantized(name).bfloat16())
        elif module not in result.weights:
            assert torch.equal(tensor, source[name].to(tensor.dtype))


@torch.no_grad()
def test_a_folder_computes_as_simulated(folders) -> None:
    result, folder = folders("w4a16")
    path = folder / "config.json"
    fields = json.loads(path.read_text())
    copy = folder.parent / "wide"
    shutil.copytree(folder, copy)
    (copy / "manifest.json").unlink()
    (copy / "config.json").write_text(json.dumps(fields | {"torch_dtype": "float32", "dtype": "float32"}))
    loaded, model = seqloom.load(copy), result.model
    assert loaded.backbone.layers[0].mixer.in_proj.weight.dtype == torch.float32
    with simulated(model, result.weights, result.formats, result.calibration, activations=False, kv_cache=False):
        wanted = model(tokens())
    assert float((loaded(tokens()) - wanted).norm() / wanted.norm()) < 0.02  # the others are in BF16
    assert float((model(tokens()) - wanted).norm() / wanted.norm()) > 0.05


def test_cache_scales_reach_the_attention(folders) -> None:
    result, folder = folders("fp8")
    model = seqloom.load(folder)
    attention = model.backbone.layers[3].mixer
    assert model.state_formats.keys_values == "fp8"
    assert seqloom.load(folders("mixed")[1]).state_formats.keys_values == "model"
    name = "backbone.layers.3.mixer"
    assert attention.k_scale == pytest.approx(float(result.calibration.keys[name]) / 448)
    assert attention.v_scale == pytest.approx(float(result.calibration.values[name]) / 448)
    assert json.loads((folder / "hf_quant_config.json").read_text())["quantization"]["kv_cache_quant_algo"] == "FP8"


def test_modelopt_declares_itself_as_published(folders) -> None:
    _, folder = folders("nvfp4")
    beside = json.loads((folder / "hf_quant_config.json").read_text())["quantization"]
    inside = json.loads((folder / "config.json").read_text())["quantization_config"]
    assert beside["quant_algo"] == inside["quant_algo"] == "NVFP4"
    assert beside["group_size"] == 16
    assert beside["kv_cache_quant_algo"] is None
    assert {"lm_head", "backbone.layers.*.mixer.conv1d"} <= set(beside["exclude_modules"])
    numbers = {"dynamic": False, "num_bits": 4, "type": "float", "group_size": 16}
    group = {"targets": ["Linear"], "weights": numbers, "input_activations": numbers}
    assert inside["config_groups"] == {"group_0": group}
    _, folder = folders("mixed")
    layers = json.loads((folder / "hf_quant_config.json").read_text())["quantization"]["quantized_layers"]
    assert layers["backbone.layers.0.mixer.in_proj"] == {"quant_algo": "FP8"}
    assert layers["backbone.layers.1.mixer.experts.7.up_proj"] == {"quant_algo": "NVFP4", "group_size": 16}


def test_experts_of_a_layer_share_the_scale_of_their_inputs(folders) -> None:
    result, folder = folders("nvfp4")
    tensors = load_file(folder / "model.safetensors")
    name = "backbone.layers.1.mixer.experts"
    scales = {float(tensors[f"{name}.{expert}.down_proj.input_scale"]) for expert in range(8)}
    assert len(scales) == 1
    assert scales.pop() == pytest.approx(float(result.calibration.inputs[f"{name}.down_proj"]) / 2688)
    assert len({float(tensors[f"{name}.{expert}.down_proj.weight_scale_2"]) for expert in range(8)}) == 8


def test_other_verbs_read_it_too(folders, tmp_path: Path) -> None:
    _, folder = folders("mixed")
    converted = convert(folder, tmp_path / "plain")
    assert converted.stored_as.keys() == {"bfloat16", "float32"}
    assert "hf_quant_config.json" in converted.left_behind
    again, loaded = seqloom.load(tmp_path / "plain").state_dict(), seqloom.load(folder).state_dict()
    assert all(torch.equal(again[name], tensor) for name, tensor in loaded.items())
    _, facts = read_facts(folder)
    assert re.search(r"\d+ in nvfp4", facts["stored_as"])
    assert re.search(r"\d+ in fp8", facts["stored_as"])
    assert facts["tensors"] == facts["expected_tensors"]


IN_PROJ, EXPERT = "backbone.layers.0.mixer.in_proj", "backbone.layers.1.mixer.experts.3.up_proj"
Q = "backbone.layers.3.mixer.q_proj"


def tensors_of(change):
    def apply(folder: Path) -> None:
        path = folder / "model.safetensors"
        tensors = load_file(path)
        change(tensors)
        save_file(tensors, path, metadata={"format": "pt"})

    return apply


def json_of(name: str, change):
    def apply(folder: Path) -> None:
        fields = json.loads((folder / name).read_text())
        change(fields)
        (folder / name).write_text(json.dumps(fields))

    return apply


def config_of(**fields: object):
    return json_of("config.json", lambda config: config["quantization_config"].update(fields))


HARM = {
    "scale_missing": ("nvfp4", tensors_of(lambda t: t.pop(f"{IN_PROJ}.weight_scale")), rf"'{IN_PROJ}.weight_scale' is"),
    "multiplier_missing": (
        "nvfp4",
        tensors_of(lambda t: t.pop(f"{Q}.weight_scale_2")),
        rf"'{Q}.weight_scale_2' is m",
    ),
    "input_scale_missing": ("fp8", tensors_of(lambda t: t.pop(f"{EXPERT}.input_scale")), rf"'{EXPERT}.input_scale' is"),
    "weight_missing": ("fp8", tensors_of(lambda t: t.pop(f"{EXPERT}.weight")), "scales no quantized weight"),
    "scale_misshapen": (
        "nvfp4",
        tensors_of(lambda t: t.update({f"{Q}.weight_scale": t[f"{Q}.weight_scale"][:, :2].clone()})),
        rf"'{Q}.weight_scale' is torch.float8_e4m3fn of shape \(64, 2\); expected .* \(64, 4\)",
    ),
    "scale_a_vector": (
        "fp8",
        tensors_of(lambda t: t.update({f"{EXPERT}.weight_scale": torch.ones(32)})),
        rf"'{EXPERT}.weight_scale' .* of shape \(32,\); expected",
    ),
    "codes_misshapen": (
        "nvfp4",
        tensors_of(
            lambda t: t.update(
                {
                    f"{Q}.weight": t[f"{Q}.weight"][:32].clone(),
                    **{f"{Q}.weight_scale": t[f"{Q}.weight_scale"][:32].clone()},
                }
            )
        ),
        rf"'{Q}.weight' has shape \(32, 64\), the configuration asks for \(64, 64\)",
    ),
    "reciprocal": (
        "nvfp4",
        tensors_of(lambda t: t.update({f"{IN_PROJ}.weight_scale_2": 1 / t[f"{IN_PROJ}.weight_scale_2"]})),
        rf"'{IN_PROJ}.weight_scale_2' .* looks like the reciprocal, which is what weight_global_scale holds",
    ),
    "reciprocal_compressed": (
        "compressed_nvfp4",
        tensors_of(lambda t: t.update({f"{IN_PROJ}.weight_global_scale": 1 / t[f"{IN_PROJ}.weight_global_scale"]})),
        rf"'{IN_PROJ}.weight_global_scale' .* looks like the reciprocal, which is what weight_scale_2 holds",
    ),
    "scale_zero": (
        "fp8",
        tensors_of(lambda t: t.update({f"{EXPERT}.weight_scale": torch.zeros(())})),
        rf"'{EXPERT}.weight_scale' is 0; a scale must be",
    ),
    "scale_nan": (
        "fp8",
        tensors_of(lambda t: t.update({f"{EXPERT}.input_scale": torch.tensor(torch.nan)})),
        rf"'{EXPERT}.input_scale' is nan",
    ),
    "cache_scale_negative": (
        "fp8",
        tensors_of(lambda t: t.update({"backbone.layers.3.mixer.k_proj.k_scale": torch.tensor(-1.0)})),
        "k_proj.k_scale' is -1",
    ),
    "cache_scale_of_no_layer": (
        "fp8",
        tensors_of(lambda t: t.update({"backbone.layers.2.mixer.k_proj.k_scale": torch.tensor(1.0)})),
        "scales keys or values of no layer",
    ),
    "fused_apart": (
        "nvfp4",
        tensors_of(lambda t: t.update({Q.replace("q_p", "v_p") + ".weight_scale_2": torch.tensor(1e-3)})),
        r"v_proj\.weight_scale_2' differs from .*_proj\.weight_scale_2'",
    ),
    "excluded": (
        "fp8",
        json_of("hf_quant_config.json", lambda f: f["quantization"]["exclude_modules"].append("*.in_proj")),
        r"in_proj is stored in fp8, but the configuration excludes it",
    ),
    "other_algorithm": (
        "fp8",
        lambda folder: [
            config_of(quant_algo="NVFP4")(folder),
            json_of("hf_quant_config.json", lambda f: f["quantization"].update(quant_algo="NVFP4"))(folder),
        ],
        "is stored in fp8, the configuration says nvfp4",
    ),
    "unknown_algorithm": (
        "fp8",
        json_of("hf_quant_config.json", lambda f: f["quantization"].update(quant_algo="MXFP8")),
        "quant_algo 'MXFP8' is not read here; read are FP8, NVFP4",
    ),
    "other_cache": (
        "fp8",
        json_of("hf_quant_config.json", lambda f: f["quantization"].update(kv_cache_quant_algo="INT8")),
        "a cache in 'INT8' is not read here, only in FP8",
    ),
    "contradiction": ("fp8", config_of(quant_algo="NVFP4"), "contradicts quantization_config"),
    "unknown_method": ("fp8", config_of(quant_method="bitsandbytes"), "quant_method 'bitsandbytes' is not read here"),
    "two_methods": ("fp8", config_of(quant_method="compressed-tensors"), "is of modelopt, but config.json says"),
    "layer_not_listed": (
        "mixed",
        lambda folder: [
            (folder / "hf_quant_config.json").unlink(),
            json_of("config.json", lambda f: f["quantization_config"]["quantized_layers"].pop(EXPERT))(folder),
        ],
        rf"{EXPERT} is stored in nvfp4, the configuration says bf16",
    ),
    "mixed_without_layers": (
        "mixed",
        lambda folder: [(folder / "hf_quant_config.json").unlink(), config_of(quantized_layers={})(folder)],
        "needs quantized_layers",
    ),
    "unknown_file_format": (
        "compressed_fp8",
        config_of(format="pack-quantized"),
        "format 'pack-quantized' is not",
    ),
    "not_compressed": ("compressed_fp8", config_of(quantization_status="frozen"), "quantization_status 'frozen'"),
    "other_strategy": (
        "compressed_fp8",
        json_of(
            "config.json",
            lambda f: f["quantization_config"]["config_groups"]["group_0"]["weights"].update(strategy="channel"),
        ),
        "are not read here; read are FP8 with one scale per tensor",
    ),
    "undeclared": (
        "fp8",
        lambda folder: [
            (folder / "hf_quant_config.json").unlink(),
            json_of("config.json", lambda f: f.pop("quantization_config"))(folder),
        ],
        r"in torch.float8_e4m3fn; only float32 and bfloat16",
    ),
}


@pytest.mark.parametrize("harm", HARM)
def test_what_is_wrong_is_named(harm: str, folders, tmp_path: Path) -> None:
    case, change, told = HARM[harm]
    copy = tmp_path / "copy"
    shutil.copytree(folders(case)[1], copy)
    (copy / "manifest.json").unlink()
    change(copy)
    with pytest.raises(CheckpointError, match=told):
        seqloom.load(copy)


def test_a_changed_declaration_is_noticed(folders, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folders("fp8")[1], copy)
    json_of("hf_quant_config.json", lambda fields: fields["quantization"]["exclude_modules"].pop())(copy)
    with pytest.raises(CheckpointError, match=r"not as it was written: hf_quant_config\.json"):
        seqloom.load(copy)


@torch.no_grad()
def test_reparametrised_matrices_become_plain_first() -> None:
    model = make("dense", stability=Stability(sigma_reparam=True, layer_scale=0.5))
    wanted = model(tokens())
    fold_methods(model)
    assert model.config.stability == Stability()
    assert all(type(each) is Linear for each in model.modules() if isinstance(each, Linear))
    torch.testing.assert_close(model(tokens()), wanted, atol=1e-4, rtol=0)


def kept_of(variant: str, **settings: object) -> set[str]:
    model = HybridLM(VARIANTS[variant])
    return set(kept_sites(model.config, sites(model), QuantizeConfig(**settings)))


def test_presets_keep_what_is_published() -> None:
    linears = {name for name in kept_of("mtp", kept="linears") if not name.startswith("mtp.")}
    assert linears == {"lm_head"}
    nemotron = {name for name in kept_of("mtp", kept="nemotron") if not name.startswith("mtp.")}
    attention = {f"backbone.layers.3.mixer.{name}_proj" for name in "qkvo"}
    latent = {f"backbone.layers.{i}.mixer.fc{j}_latent_proj" for i in (1, 4, 6) for j in (1, 2)}
    assert nemotron == linears | attention | latent
    feeding = {f"backbone.layers.2.mixer.{name}_proj" for name in ("in", "out")}
    assert kept_of("mtp", recipe="fp8") - kept_of("mtp", kept="nemotron") == feeding
    assert kept_of("mtp", kept="conservative") - kept_of("mtp", kept="nemotron") == {
        f"backbone.layers.{i}.mixer.{name}_proj" for i in (0, 2, 5) for name in ("in", "out")
    }


def test_patterns_keep_whole_groups_and_must_match() -> None:
    more = kept_of("moe", kept="linears", keep=("*.layers.3.mixer.q_proj", "*.layers.1.*.experts.up_proj"))
    assert more - kept_of("moe", kept="linears") == {
        *(f"backbone.layers.3.mixer.{name}_proj" for name in "qkv"),
        *(f"backbone.layers.1.mixer.experts.{name}_proj" for name in ("up", "down")),
    }
    with pytest.raises(ConfigError, match=r"keep: no linear layer is matched by '\*\.conv1d'"):
        kept_of("moe", keep=("*.conv1d",))
    with pytest.raises(ConfigError, match="nothing is left to quantize"):
        kept_of("moe", keep=("*",))


def test_what_a_layout_cannot_hold_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"experts cannot be quantized, .* --keep '\*\.experts\.\*'"):
        quantized("moe", recipe="fp8", layout="compressed-tensors")
    with pytest.raises(ConfigError, match="kv_cache: 'fp8' is for the layout modelopt"):
        QuantizeConfig(layout="compressed-tensors", kv_cache="fp8")
    with pytest.raises(ConfigError, match="recipe: 'mixed' is for the layout modelopt"):
        QuantizeConfig(layout="compressed-tensors", recipe="mixed")


def test_a_foreign_folder_of_two_formats_is_read(folders, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folders("compressed_nvfp4")[1], copy)
    (copy / "manifest.json").unlink()
    wanted = seqloom.load(copy).state_dict()
    eight = {"weights": {"num_bits": 8, "type": "float", "strategy": "tensor"}}
    groups = json.loads((copy / "config.json").read_text())["quantization_config"]["config_groups"]
    config_of(format="mixed-precision", config_groups=groups | {"group_1": eight})(copy)
    module, tensors = IN_PROJ, load_file(copy / "model.safetensors")
    values = by_hand(tensors, module)
    for leaf in ("weight_packed", "weight_scale", "weight_global_scale", "input_global_scale"):
        del tensors[f"{module}.{leaf}"]
    codes = (values / (scale := values.abs().max() / 448)).to(torch.float8_e4m3fn)
    scales = {f"{module}.{leaf}": scale.reshape(1).clone() for leaf in ("weight_scale", "input_scale")}
    save_file(tensors | scales | {f"{module}.weight": codes}, copy / "model.safetensors", metadata={"format": "pt"})
    for name, tensor in seqloom.load(copy).state_dict().items():
        expected = (codes.float() * scale).bfloat16() if name == f"{module}.weight" else wanted[name]
        assert torch.equal(tensor, expected)


@pytest.mark.parametrize("case", [case for case in CASES if case.startswith("compressed")])
@pytest.mark.filterwarnings("ignore")  # of two libraries, about themselves
@torch.no_grad()
def test_transformers_reads_the_same_weights(case: str, folders) -> None:
    pytest.importorskip("compressed_tensors")
    transformers = pytest.importorskip("transformers")
    result, folder = folders(case)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.bfloat16, quantization_config=transformers.CompressedTensorsConfig(run_compressed=False)
    )
    ours = {name.replace("backbone.", "model."): tensor for name, tensor in seqloom.load(folder).state_dict().items()}
    found = dict(theirs.state_dict())
    quantized_names = {f"{name}.weight".replace("backbone.", "model.") for name in result.weights}
    assert len(quantized_names) > 5
    for name in quantized_names:
        assert torch.equal(found[name], ours[name]), name
