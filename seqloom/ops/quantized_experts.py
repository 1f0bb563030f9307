"""Routed experts in few bits: each expert is two linear layers over the tokens sent to it, quantized as any other.

    y_s = Σ_k w_sk down_e relu(up_e x_s)²     with e = chosen_sk

Operands are those of one expert: its slice of the tokens has its own largest magnitude and its own blocks, filled up
with zeros; an expert without tokens multiplies nothing, and its weights get a gradient of zeros. The weights w are
applied in FP32, after the products.
Paper: "Pretraining LLMs with NVFP4" (three products), Nemotron 3 Super (experts in NVFP4).
"""

from collections.abc import Mapping

import torch
from jaxtyping import Float, Int
from torch import Tensor

from seqloom.numerics.place import Place
from seqloom.numerics.recipes import Products
from seqloom.ops.experts import experts, slices
from seqloom.ops.quantized_linear import quantized_linear
from seqloom.ops.squared_relu import squared_relu


def quantized_experts(
    x: Float[Tensor, "S I"],
    indices: Int[Tensor, "S K"],
    weights: Float[Tensor, "S K"],
    up: Float[Tensor, "E F I"],
    down: Float[Tensor, "E I F"],
    products: Products,
    places: Mapping[str, Place],
) -> Float[Tensor, "S I"]:
    """As `experts`, in BF16 and with products of few bits.

    Args:
        places: of "up_proj" and "down_proj".
    """
    x, above, below = x.to(torch.bfloat16), places["up_proj"], places["down_proj"]
    if indices.numel() == 0 or above.clock.switched == "both":
        return experts(x, indices, weights, up.to(x.dtype), down.to(x.dtype))
    order = indices.flatten().argsort(stable=True)
    counts = indices.flatten().bincount(minlength=len(up)).tolist()
    inputs, ups, downs, outputs = x[order // indices.shape[1]], up.unbind(), down.unbind(), []
    for expert, rows in slices(counts):
        hidden = squared_relu(quantized_linear(inputs[rows], ups[expert], products, above.of(expert)))
        outputs.append(quantized_linear(hidden, downs[expert], products, below.of(expert)))
    slots = torch.empty_like(order)  # where each assignment stands in expert order
    slots[order] = torch.arange(len(order), device=x.device)
    chosen = torch.cat(outputs)[slots.view_as(indices)]
    return (chosen.float() * weights[..., None].float()).sum(1).to(x.dtype)
