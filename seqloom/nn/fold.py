"""Take stability methods that are only another way to write weights into the weights, for inference and export.

sigma_reparam   W ← (g / σ(W)) W                                       bit-equal outputs
layer_scale     rows of the output matrices ← s ∘ rows; of an output norm, its gain and bias       equal to rounding
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from seqloom.nn.attention import Attention
from seqloom.nn.layer import Layer
from seqloom.nn.mamba2 import Mamba2
from seqloom.nn.mlp import Mlp
from seqloom.nn.norm import AxesNorm
from seqloom.nn.sigma_reparam import SigmaExperts, SigmaLinear


@torch.no_grad()
def fold(model: nn.Module) -> None:
    """Rewrite the layers of a model in place; afterwards it has the parameters of `Stability.folded()`."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, SigmaLinear | SigmaExperts):
                setattr(parent, name, child.folded())
    for layer in model.modules():
        if isinstance(layer, Layer) and layer.layer_scale is not None:
            for tensor in _outputs(layer):
                tensor *= layer.layer_scale.view(-1, *[1] * (tensor.ndim - 1))
            layer.layer_scale = None


def _outputs(layer: Layer) -> Iterator[Tensor]:
    """The tensors that a layer's output is linear in, together, with the output axis first."""
    mixer = layer.mixer
    if isinstance(layer.output_norm, AxesNorm):
        yield from layer.output_norm.parameters()
    elif isinstance(mixer, Attention):
        yield mixer.o_proj.weight
    elif isinstance(mixer, Mamba2):
        yield mixer.out_proj.weight
    elif isinstance(mixer, Mlp):
        yield mixer.down_proj.weight
    else:
        yield mixer.shared_experts.down_proj.weight
        if mixer.fc2_latent_proj is not None:
            yield mixer.fc2_latent_proj.weight
        else:
            yield mixer.experts.down_proj.transpose(0, 1)
