"""Write the golden files: what transformers computes for small models, kept so that parity holds without it.

Run by hand, where transformers is installed, when the library's meaning changes for good:

    PYTHONPATH=tests python tests/systems/hybrid_lm/make_golden.py

Each file is a safetensors file. `weights/*` are the model under its names on disk, rounded to BF16 first (but for the
tensors that published files keep in FP32), so that half the bytes hold them exactly; the metadata holds config.json and
the versions of the libraries. `seen/*` is what the library made of `ids`, in FP32 and without its floor of dt:

    logits         2 × 40 × V
    layers         L × 2 × 4 × D, the residual stream after every layer at the last four places
    ssm, window    per Mamba layer, its states after 20 tokens, the window newest last
    chosen         per expert layer, 2 × 40 × K experts in rising order
    loss           mean nats of the next token
    gradients      of that loss, a row for every weight by rising name: its norm, and its product with the weight
    ahead          2 × 2 × 16 × D, the prediction block's training depths 1 and 2 at the last places, with such a block
"""

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from tiny_models import excite
from transformers_oracle import PredictionBlock, unstacked, without_floor

FOLDER = Path(__file__).parent / "golden"
BASE = {
    "architectures": ["NemotronHForCausalLM"], "model_type": "nemotron_h", "torch_dtype": "float32",
    "vocab_size": 96, "hidden_size": 64, "layer_norm_epsilon": 1e-5, "norm_eps": 1e-5,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "intermediate_size": 128,
    "mamba_num_heads": 8, "mamba_head_dim": 16, "ssm_state_size": 16, "n_groups": 2, "conv_kernel": 4, "chunk_size": 16,
    "n_routed_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 32,
    "moe_shared_expert_intermediate_size": 48, "n_shared_experts": 1, "n_group": 1, "topk_group": 1,
    "norm_topk_prob": True, "routed_scaling_factor": 2.5, "max_position_embeddings": 512,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
VARIANTS: dict[str, dict[str, Any]] = {
    "dense": {"hybrid_override_pattern": "M-M*-M-"},
    "moe": {"hybrid_override_pattern": "MEM*EME"},
    "latent_mtp": {"hybrid_override_pattern": "MEM*EME", "moe_latent_size": 24, "num_nextn_predict_layers": 1,
                   "mtp_hybrid_override_pattern": "*E"},
    "grouped": {"hybrid_override_pattern": "MEM*EME", "moe_latent_size": 24, "n_group": 4, "topk_group": 2},
    "wide_attention": {"hybrid_override_pattern": "M*-M*-", "head_dim": 32},
    "one_group": {"hybrid_override_pattern": "MM*M-", "n_groups": 1},
}  # fmt: skip
FP32_ONLY = ("A_log", ".D", "dt_bias", "e_score_correction_bias")
CLEAR = 5e-4
"""No two experts between which the router decides may be closer: rounding must not flip a choice."""


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    for name, fields in VARIANTS.items():
        fields = BASE | fields | {"num_hidden_layers": len(fields["hybrid_override_pattern"])}
        for seed in range(100):
            seen, weights, gap = golden(fields, seed)
            if gap >= CLEAR:
                break
        metadata = {
            "config": json.dumps(fields),
            "transformers": transformers.__version__,
            "torch": torch.__version__,
            "seed": str(seed),
        }
        tensors = {f"weights/{key}": tensor for key, tensor in weights.items()}
        tensors |= {f"seen/{key}": tensor for key, tensor in seen.items()}
        path = FOLDER / f"{name}.safetensors"
        save_file({key: tensor.detach().contiguous().clone() for key, tensor in tensors.items()}, path, metadata)
        print(f"{name}: seed {seed}, {path.stat().st_size / 1e3:.0f} kB, closest choice {gap:.1e}")


def golden(fields: dict[str, Any], seed: int) -> tuple[dict[str, Tensor], dict[str, Tensor], float]:
    """What is seen, the weights under their names on disk, and how close the closest choice of an expert was."""
    config = transformers.NemotronHConfig(**fields)
    model = without_floor(rounded(excite(transformers.NemotronHForCausalLM(config), seed)).eval())
    weights = named(model.state_dict().items())
    block = None
    if fields.get("num_nextn_predict_layers"):
        block = rounded(excite(PredictionBlock(config), seed + 1000)).eval()
        weights |= named((f"mtp.{key}", tensor) for key, tensor in block.state_dict().items())
    ids = torch.randint(3, fields["vocab_size"], (2, 40), generator=torch.Generator().manual_seed(seed))

    layers: list[Tensor] = []
    routers: list[tuple[Tensor, Tensor]] = []
    for layer in model.model.layers:
        layer.register_forward_hook(lambda _, __, out: layers.append(out[:, -4:]))
        if layer.block_type == "moe":
            layer.mixer.gate.register_forward_hook(lambda gate, _, out: routers.append((out[2], margin(gate, out))))
    out = model(ids, use_cache=False)
    loss = F.cross_entropy(out.logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    parameters = dict(model.named_parameters())
    slopes = named(zip(parameters, torch.autograd.grad(loss, parameters.values()), strict=True))
    seen = {
        "ids": ids,
        "logits": out.logits,
        "layers": torch.stack(layers),
        "loss": loss,
        "gradients": torch.tensor(
            [[float(slopes[key].norm()), float((slopes[key] * weights[key]).sum())] for key in sorted(slopes)],
            dtype=torch.float64,
        ),
    }
    gap = 1.0
    if routers:
        seen["chosen"] = torch.stack([chosen.sort(-1).values.view(2, 40, -1) for chosen, _ in routers]).to(torch.uint8)
        gap = min(float(distance.min()) for _, distance in routers)
    with torch.no_grad():
        if block is not None:
            hidden = model.model(ids, use_cache=False).last_hidden_state
            seen["ahead"] = torch.stack(block.look_ahead(model.model.embeddings, hidden, ids, 2))[:, :, -16:]
        cache = model(ids[:, :20], use_cache=True).past_key_values
    mamba = [number for number, letter in enumerate(fields["hybrid_override_pattern"]) if letter == "M"]
    seen["ssm"] = torch.stack([cache.get_recurrent_state(number, state_idx=0) for number in mamba])
    seen["window"] = torch.stack([cache.get_conv_state(number, state_idx=0)[..., 1:] for number in mamba])
    stored = {key: tensor if key.endswith(FP32_ONLY) else tensor.bfloat16() for key, tensor in weights.items()}
    return seen, stored, gap


def rounded(module: torch.nn.Module) -> torch.nn.Module:
    """The module with all weights at values that BF16 holds exactly."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if not name.endswith(FP32_ONLY):
                parameter.copy_(parameter.bfloat16())
    return module


def named(tensors: Any) -> dict[str, Tensor]:
    return {key: part for name, tensor in tensors for key, part in unstacked(name, tensor).items()}


@torch.no_grad()
def margin(gate: Any, out: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """How far the last chosen expert was from the first not chosen, and the last open group from the first closed."""
    selection = out[0].sigmoid() + gate.e_score_correction_bias
    if gate.num_group == 1:
        best = selection.topk(gate.top_k + 1).values
        return best[:, -2] - best[:, -1]
    grouped = selection.unflatten(-1, (gate.num_group, -1))
    scores = grouped.topk(2).values.sum(-1)
    groups = scores.topk(gate.topk_group + 1).values
    is_open = scores >= groups[:, -2:-1]
    best = grouped.masked_fill(~is_open[..., None], -torch.inf).flatten(1).topk(gate.top_k + 1).values
    return torch.minimum(groups[:, -2] - groups[:, -1], best[:, -2] - best[:, -1])


if __name__ == "__main__":
    main()
