"""Matrices of a fixed spectral norm:  Ŵ = (g / σ(W)) W, with σ the largest singular value and g learned, at first 1.

    σ = uᵀ W v       u, v are constants for the gradient, and follow W by one power iteration per optimizer step:
                     v ← Wᵀu / ‖Wᵀu‖,   u ← Wv / ‖Wv‖

`advance` moves u and v, once after each step, and no forward pass does: so accumulation, recomputed layers and
evaluation all see one Ŵ per step. They are buffers, saved with the weights, and begin close to the singular vectors
of the initial W. No random number is drawn for them: a seed gives the same W with and without the method.
Paper: "Stabilizing Transformer training by preventing attention entropy collapse" (arXiv 2303.06296), section 4.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from seqloom.nn.linear import Linear
from seqloom.nn.moe import Experts
from seqloom.numerics.precision import dtype_of
from seqloom.ops.experts import experts

FIRST_ITERATIONS = 20


class Spectrum(nn.Module):
    """The learned scale and singular vectors of a matrix, or of each matrix in a stack."""

    u: Tensor
    v: Tensor

    def __init__(self, matrix: Float[Tensor, "*E O I"]) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(matrix.shape[:-2] or (1,)))
        self.register_buffer("u", torch.zeros(matrix.shape[:-1]))
        self.register_buffer("v", torch.zeros(*matrix.shape[:-2], matrix.shape[-1]))

    def forward(self, matrix: Float[Tensor, "*E O I"]) -> Float[Tensor, "*E O I"]:
        """Ŵ, in the dtype of W."""
        sigma = (self.u * (matrix @ self.v[..., None])[..., 0]).sum(-1)
        return matrix * (self.gain.view(sigma.shape) / sigma.clamp(min=1e-12))[..., None, None]

    @torch.no_grad()
    def begin(self, matrix: Float[Tensor, "*E O I"]) -> None:
        """Find the singular vectors of a fresh matrix."""
        nn.init.ones_(self.gain)
        self.u.fill_(self.u.shape[-1] ** -0.5)
        for _ in range(FIRST_ITERATIONS):
            self.follow(matrix)

    @torch.no_grad()
    def follow(self, matrix: Float[Tensor, "*E O I"]) -> None:
        """One power iteration."""
        self.v.copy_(F.normalize((matrix.mT @ self.u[..., None])[..., 0], dim=-1))
        self.u.copy_(F.normalize((matrix @ self.v[..., None])[..., 0], dim=-1))


class SigmaLinear(Linear):
    """A linear layer that multiplies by Ŵ."""

    low_bit = False

    def __init__(self, in_width: int, out_width: int, *, residual_output: bool = False) -> None:
        super().__init__(in_width, out_width, residual_output=residual_output)
        self.spectrum = Spectrum(self.weight)

    def initialise(self, std: float, layers: int) -> None:
        super().initialise(std, layers)
        self.spectrum.begin(self.weight)

    def advance(self) -> None:
        self.spectrum.follow(self.weight)

    def forward(self, x: Float[Tensor, "*B I"]) -> Float[Tensor, "*B O"]:
        dtype = dtype_of(self.format)
        return F.linear(x.to(dtype), self.spectrum(self.weight).to(dtype))

    @torch.no_grad()
    def folded(self) -> Linear:
        """The plain layer of the same outputs, bit for bit."""
        plain = Linear(self.weight.shape[1], self.weight.shape[0], residual_output=self.residual_output)
        plain.weight, plain.format = nn.Parameter(self.spectrum(self.weight)), self.format
        return plain


class SigmaExperts(Experts):
    """Routed experts that multiply by Ŵ, with a scale for each expert's matrices."""

    low_bit = False

    def __init__(self, count: int, width: int, expert_width: int) -> None:
        super().__init__(count, width, expert_width)
        self.up_spectrum, self.down_spectrum = Spectrum(self.up_proj), Spectrum(self.down_proj)

    def initialise(self, std: float, layers: int) -> None:
        super().initialise(std, layers)
        self.up_spectrum.begin(self.up_proj)
        self.down_spectrum.begin(self.down_proj)

    def advance(self) -> None:
        self.up_spectrum.follow(self.up_proj)
        self.down_spectrum.follow(self.down_proj)

    def forward(
        self, x: Float[Tensor, "S I"], chosen: Int[Tensor, "S J"], weights: Float[Tensor, "S J"]
    ) -> Float[Tensor, "S I"]:
        dtype = dtype_of(self.format)
        up, down = self.up_spectrum(self.up_proj), self.down_spectrum(self.down_proj)
        return experts(x.to(dtype), chosen, weights, up.to(dtype), down.to(dtype))

    @torch.no_grad()
    def folded(self) -> Experts:
        """The plain experts of the same outputs, bit for bit."""
        count, expert_width, width = self.up_proj.shape
        plain = Experts(count, width, expert_width)
        plain.up_proj = nn.Parameter(self.up_spectrum(self.up_proj))
        plain.down_proj = nn.Parameter(self.down_spectrum(self.down_proj))
        plain.format = self.format
        return plain


def reparametrise(mixer: nn.Module) -> None:
    """Put a reparametrised layer in the place of every linear layer and every stack of experts; call it before
    weights are drawn."""
    for parent in list(mixer.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is Linear:
                out_width, in_width = child.weight.shape
                setattr(parent, name, SigmaLinear(in_width, out_width, residual_output=child.residual_output))
            elif type(child) is Experts:
                count, expert_width, width = child.up_proj.shape
                setattr(parent, name, SigmaExperts(count, width, expert_width))


def advance(model: nn.Module) -> None:
    """One power iteration for every reparametrised matrix; called once after each optimizer step."""
    for module in model.modules():
        if isinstance(module, SigmaLinear | SigmaExperts):
            module.advance()
