"""Quantized folders opened with their matrices in the bits of the file."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from seqloom.core.errors import CheckpointError
from seqloom.nn.packed import PackedExperts, PackedLinear
from seqloom.quantize.calibrate import calibrate
from seqloom.quantize.config import QuantizeConfig
from seqloom.quantize.sites import sites
from seqloom.quantize.weights import quantize_weights
from seqloom.systems.hybrid_lm.folder import read_model
from seqloom.systems.hybrid_lm.kept_layers import fixed_format, kept_sites
from seqloom.systems.hybrid_lm.packed_folder import read_packed
from seqloom.systems.hybrid_lm.quantized_writing import QuantizedModel
from tiny_models import make, tokens


def written(folder: Path, variant: str, **settings: object) -> Path:
    model, config = make(variant), QuantizeConfig(**settings)
    everything = sites(model)
    kept = kept_sites(model.config, everything, config)
    chosen = [site for site in everything if site.name not in kept]
    formats = {site.name: fixed_format(site, config) for site in chosen}
    weights = quantize_weights(chosen, formats, config.weights, lambda share: None)
    calibration = calibrate(model, chosen, lambda: model(tokens()))
    QuantizedModel(model, config, formats, weights, calibration, kept).write(
        folder, {"of": "a test"}, report_name="quantization.json", carried={}, carry_from=folder.parent
    )
    return folder


def wide(folder: Path) -> Path:
    """Say that everything else is to be computed in FP32, so that nothing is rounded in one reader alone."""
    path = folder / "config.json"
    fields = json.loads(path.read_text())
    path.write_text(json.dumps(fields | {"torch_dtype": "float32", "dtype": "float32"}))
    (folder / "manifest.json").unlink()
    return folder


@pytest.mark.parametrize(
    ("variant", "settings"),
    [
        ("moe", {"recipe": "mixed"}),
        ("mtp", {"recipe": "fp8", "kv_cache": "fp8"}),
        ("moe", {"recipe": "nvfp4", "layout": "compressed-tensors", "kept": "linears"}),
        ("dense", {"recipe": "fp8", "layout": "compressed-tensors"}),
    ],
)
@torch.no_grad()
def test_computes_as_the_dequantized_model(variant: str, settings: dict[str, object], tmp_path: Path) -> None:
    folder = wide(written(tmp_path / "folder", variant, **settings))
    packed, plain = read_packed(folder), read_model(folder)
    modules = [module for module in packed.modules() if isinstance(module, PackedLinear | PackedExperts)]
    assert len(modules) > 2
    assert any(isinstance(module, PackedExperts) for module in modules) == (variant != "dense")
    for name, module in packed.named_modules():
        if isinstance(module, PackedLinear):
            assert torch.equal(module.weight.dequantize(), plain.get_parameter(f"{name}.weight"))
        elif isinstance(module, PackedExperts):
            assert torch.equal(module.up_proj.dequantize(), plain.get_parameter(f"{name}.up_proj"))
            assert torch.equal(module.down_proj.dequantize(), plain.get_parameter(f"{name}.down_proj"))
    assert packed.state_formats == plain.state_formats
    wanted = plain(tokens())
    torch.testing.assert_close(packed(tokens()), wanted, rtol=2e-3, atol=2e-3)  # inputs of nvfp4 have 16 bits


@pytest.mark.parametrize("recipe", ["fp8", "nvfp4"])
def test_codes_of_nan_are_refused(recipe: str, tmp_path: Path) -> None:
    folder = wide(written(tmp_path / "folder", "dense", recipe=recipe))
    file = folder / "model.safetensors"
    tensors = load_file(file)
    name = next(name for name, tensor in tensors.items() if tensor.dtype == torch.float8_e4m3fn)
    tensors[name].view(torch.uint8)[0, 0] = 0xFF
    save_file(tensors, file)
    with pytest.raises(CheckpointError, match=f"'{name}' has codes of NaN"):
        read_packed(folder)
