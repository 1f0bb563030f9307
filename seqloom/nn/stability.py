"""What keeps attention and blocks from blowing up at large learning rates, as configuration; off by default.

    l = q·k / √K                       qk_norm: q and k after norms of their own;  soft_cap: l ← c tanh(l / c)
    p = softmax(β l)                   inverse_temperature: β;  soft_clip: p ← clip((ζ - γ) p + γ, 0, 1)
    y = Σ p v                          v_norm: v after a norm
    x + s ∘ norm(mixer(norm(x)))       layer_scale: s;  output_norm: the outer norm;  pre_norm: the inner one
    Ŵ = (g / σ(W)) W                   sigma_reparam: for every matrix of a mixer, σ its largest singular value

The methods compose. Norms, cap and softmax are computed in FP32. Heads normalise keys and values before they are
remembered, so a cache holds what attention sees.
Paper: "Methods of improving LLM training stability" (arXiv 2410.16682); its nine methods by name are in `METHODS`.
"""

from dataclasses import replace
from typing import Annotated, Literal

from seqloom.core.config import Ge, Gt, config
from seqloom.core.errors import ConfigError


@config
class Stability:
    """Stability methods of attention and blocks; the default is the plain model."""

    qk_norm: bool = False
    """Normalise every query and key head after its projection."""
    v_norm: Literal["none", "head", "width"] = "none"
    """Normalise values after their projection: each head by itself, or all heads together."""
    pre_norm: bool = True
    """Keep the norm in front of attention layers; other layers always keep theirs."""
    soft_cap: Annotated[float, Gt(0)] | None = None
    """c of the capped score c·tanh(score / c)."""
    inverse_temperature: Annotated[float, Gt(0)] = 1.0
    """β of softmax(β·score)."""
    soft_clip: tuple[float, float] | None = None
    """γ and ζ: probabilities are stretched to [γ, ζ], then clipped to [0, 1]; rows need not sum to 1."""
    output_norm: bool = False
    """Normalise what attention, MLP and expert layers add to the residual stream."""
    layer_scale: Annotated[float, Gt(0)] | None = None
    """Multiply what every layer adds by a learned vector that begins with this value."""
    sigma_reparam: bool = False
    """Divide every matrix of a mixer by its largest singular value and learn the scale."""
    z_loss: Annotated[float, Ge(0)] = 0.0
    """Weight of logsumexp² of the output logits in the training loss."""
    norm: Literal["layer", "rms"] = "layer"
    """Kind of the norms that the methods add: LayerNorm with gain and bias, or RMSNorm with gain."""
    per_head: bool = False
    """Give every head gains of its own in the norms of queries, keys and values."""

    def __post_init__(self) -> None:
        if self.soft_clip is not None and not (self.soft_clip[0] <= 0 and self.soft_clip[1] >= 1):
            raise ConfigError(
                f"model.stability.soft_clip: {list(self.soft_clip)} is not allowed; γ must be at most 0, or hidden "
                "tokens would be seen, and ζ at least 1"
            )

    def folded(self) -> "Stability":
        """The same without what `nn.fold` takes into the weights."""
        return replace(self, sigma_reparam=False, layer_scale=None)


PLAIN = Stability()

METHODS: dict[str, Stability] = {
    "base": PLAIN,
    "sigma_reparam": Stability(sigma_reparam=True),
    "soft_temp": Stability(inverse_temperature=0.5),
    "soft_cap": Stability(soft_cap=50.0),
    "soft_clip": Stability(soft_clip=(-0.03, 1.03)),
    "layer_scale": Stability(layer_scale=1e-2),
    "qk_norm": Stability(qk_norm=True),
    "qk_norm_cap": Stability(qk_norm=True, soft_cap=50.0),
    "qkv_norm": Stability(qk_norm=True, v_norm="head", pre_norm=False),
    "qk_fc_norm": Stability(qk_norm=True, output_norm=True),
    "qkv_norm_keep_pre": Stability(qk_norm=True, v_norm="head"),
    "no_pre": Stability(pre_norm=False),
    "z_loss": Stability(z_loss=1e-4),
}
"""The plain model, the paper's nine methods with its constants, and three controls. Not in the paper: the initial value
of layer_scale, and the controls."""
