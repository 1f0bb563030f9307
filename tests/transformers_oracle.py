"""transformers' own model as an oracle that nobody here wrote, computing what the published models mean.

Two things must be helped along in release 5.23. It floors dt at 1e-3 in prefill and training, which the models do not:
the floor is taken away here. And it has no multi-token prediction: the block is put together here from its layers.
Import this only where transformers is installed.
"""

import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import NemotronHConfig, NemotronHForCausalLM
from transformers.models.nemotron_h.modeling_nemotron_h import NemotronHBlock, NemotronHRMSNorm


def open_oracle(folder: Path, dtype: torch.dtype = torch.float32) -> NemotronHForCausalLM:
    """The model of a folder, without the floor of dt, in evaluation mode."""
    return without_floor(NemotronHForCausalLM.from_pretrained(folder, dtype=dtype).eval())


def without_floor(model: NemotronHForCausalLM) -> NemotronHForCausalLM:
    for layer in model.model.layers:
        if layer.block_type == "linear_attention":
            layer.mixer.time_step_limit = (0.0, float("inf"))
    return model


def on_disk(name: str) -> str:
    """The name that a tensor of the oracle has in files, but for stacked experts, which are one tensor each there."""
    return re.sub(r"^model\.", "backbone.", name)


def unstacked(name: str, tensor: Tensor) -> dict[str, Tensor]:
    """A tensor of the oracle (or its gradient) under the names it has in files."""
    name = on_disk(name)
    if not name.endswith((".experts.up_proj", ".experts.down_proj")):
        return {name: tensor}
    stem, leaf = name.rsplit(".", 1)
    return {f"{stem}.{expert}.{leaf}.weight": matrix for expert, matrix in enumerate(tensor)}


class PredictionBlock(nn.Module):
    """The multi-token prediction block of a folder, made of the oracle's layers."""

    def __init__(self, config: NemotronHConfig) -> None:
        super().__init__()
        kinds = list(config.mtp_layers_block_type)
        self.config = NemotronHConfig.from_dict({**config.to_dict(), "layers_block_type": kinds})
        self.config._attn_implementation = "sdpa"  # causal without a mask, unlike the default of a bare config
        self.layers = nn.ModuleList(NemotronHBlock(self.config, number) for number in range(len(kinds)))
        width, eps = config.hidden_size, config.layer_norm_epsilon
        first, last = self.layers[0], self.layers[-1]
        first.eh_proj = nn.Linear(2 * width, width, bias=False)
        first.enorm, first.hnorm = NemotronHRMSNorm(width, eps=eps), NemotronHRMSNorm(width, eps=eps)
        last.final_layernorm = NemotronHRMSNorm(width, eps=eps)

    @classmethod
    def open(cls, folder: Path) -> "PredictionBlock":
        block = cls(NemotronHConfig.from_pretrained(folder))
        stored = load_file(folder / "model.safetensors")
        with torch.no_grad():
            for name, tensor in block.state_dict().items():
                for file_name, part in unstacked("mtp." + name, tensor).items():
                    part.copy_(stored[file_name])  # `part` is a view of the block's own memory
        return block.eval()

    def forward(self, hidden: Tensor, embedded: Tensor, cache: Any = None) -> Tensor:
        first, last = self.layers[0], self.layers[-1]
        x = first.eh_proj(torch.cat([first.enorm(embedded), first.hnorm(hidden)], dim=-1))
        for layer in self.layers:
            x = layer(x, past_key_values=cache)
        return last.final_layernorm(x)

    def look_ahead(self, embed: nn.Module, hidden: Tensor, ids: Tensor, depth: int) -> list[Tensor]:
        """Depths 1 to `depth` as in training; beyond the end of the row the embedding is zero."""
        results: list[Tensor] = []
        for k in range(1, depth + 1):
            ahead = torch.cat([embed(ids[:, k:]), torch.zeros_like(hidden[:, :k])], dim=1)
            hidden = self(hidden, ahead)
            results.append(hidden)
        return results
