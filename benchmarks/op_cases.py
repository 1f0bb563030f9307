"""The shapes at which ops are measured, and plain torch forms that compute the same.

Each function makes random inputs of given sizes (axes as everywhere: B batch, T time, H heads, ...) and names the op,
its peers and its work. An op is imported only when its turn comes, so that an older package without it has the rest.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

Op = Callable[..., Tensor]


class Contest(NamedTuple):
    """An op and plain torch forms of it.

    Attributes:
        op: its name in `ops/kernels.py`.
        inputs: what gradients are taken for.
        flops: multiplications and additions of the matrix products, recomputation not counted.
        backward: its backward pass is part of the work.
    """

    op: str
    inputs: tuple[Tensor, ...]
    ours: Op
    peers: dict[str, Op]
    flops: float = 0.0
    backward: bool = True


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape)


# --- state-space scan


def ssd_autograd(x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, chunk: int) -> Tensor:
    """All chunks at once, differentiated by autograd."""
    B, T, H, P = x.shape
    G, N = b.shape[2:]
    count, R = T // chunk, H // G
    alpha = (dt * a).view(B, count, chunk, H).cumsum(2).transpose(2, 3)
    last = alpha[..., -1:]
    u = (x * dt[..., None]).view(B, count, chunk, G, R, P).permute(0, 1, 3, 4, 2, 5)
    b, c = (part.to(u.dtype).view(B, count, chunk, G, N).transpose(2, 3) for part in (b, c))
    decay = (alpha[..., None] - alpha[..., None, :]).clamp(max=0).exp().tril().view(B, count, G, R, chunk, chunk)
    within = (decay * (c @ b.mT)[:, :, :, None]) @ u
    leaving = (last - alpha).exp().view(B, count, G, R, chunk, 1)
    written = b.mT @ (u * leaving).transpose(3, 4).reshape(B, count, G, chunk, R * P)
    across = last.exp().view(B, count, G, 1, R, 1).expand(-1, -1, -1, -1, -1, P).flatten(4)
    states = [torch.zeros_like(written[:, 0])]
    for i in range(count - 1):
        states.append(across[:, i] * states[-1] + written[:, i])
    carried = (c @ torch.stack(states, 1)).view(B, count, G, chunk, R, P).transpose(3, 4)
    y = within + alpha.exp().view(B, count, G, R, chunk, 1) * carried
    return y.permute(0, 1, 4, 2, 3, 5).reshape(B, T, H, P).to(x.dtype)


def ssd(B: int, T: int, H: int, P: int, N: int, G: int, chunk: int) -> Contest:
    from seqloom.ops.ssd import ssd

    dt, a = F.softplus(normal(B, T, H) - 2), -0.5 - 8 * torch.rand(H)
    return Contest(
        "ssd",
        (normal(B, T, H, P), dt, a, normal(B, T, G, N), normal(B, T, G, N)),
        lambda x, dt, a, b, c: ssd(x, dt, a, b, c, chunk=chunk)[0],
        {"autograd": lambda x, dt, a, b, c: ssd_autograd(x, dt, a, b, c, chunk)},
        3 * 2 * B * T * (H * P * (chunk + 2 * N) + G * chunk * N),
    )


def ssd_token(B: int, H: int, P: int, N: int, G: int) -> Contest:
    """One token, as in decoding."""
    from seqloom.ops.ssd import ssd

    state = normal(B, H, P, N)

    def plain(x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
        b, c = (part[:, 0].repeat_interleave(H // G, 1) for part in (b, c))
        decay, u = torch.exp(dt[:, 0] * a)[..., None, None], dt[:, 0, :, None] * x[:, 0]
        new = state * decay + u[..., None] * b[:, :, None]
        return (new @ c[..., None].to(new.dtype))[None, ..., 0].transpose(0, 1).to(x.dtype)

    return Contest(
        "ssd",
        (normal(B, 1, H, P), F.softplus(normal(B, 1, H)), -torch.rand(H), normal(B, 1, G, N), normal(B, 1, G, N)),
        lambda x, dt, a, b, c: ssd(x, dt, a, b, c, state, chunk=128)[0],
        {"plain": plain},
        backward=False,
    )


# --- convolution and norms


def causal_conv(B: int, T: int, C: int) -> Contest:
    from seqloom.ops.causal_conv import causal_conv

    def conv1d(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        padded = F.pad(x.transpose(1, 2), (weight.shape[1] - 1, 0))
        return F.silu(F.conv1d(padded, weight[:, None], bias, groups=len(weight))).transpose(1, 2)

    def shifted(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        taps = weight.shape[1]
        padded = F.pad(x, (0, 0, taps - 1, 0))
        return F.silu(sum((padded[:, k : k + x.shape[1]] * weight[:, k] for k in range(taps)), bias))

    inputs = (normal(B, T, C), normal(C, 4), normal(C))
    return Contest("causal_conv", inputs, lambda *args: causal_conv(*args)[0], {"conv1d": conv1d, "shifted": shifted})


def rms_norm(B: int, T: int, D: int) -> Contest:
    from seqloom.ops.norm import rms_norm

    def plain(x: Tensor, weight: Tensor) -> Tensor:
        wide = x.float()
        return (weight * wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + 1e-5)).to(x.dtype)

    return Contest(
        "norm",
        (normal(B, T, D), normal(D)),
        lambda x, weight: rms_norm(x, weight, 1e-5),
        {"plain": plain, "rms_norm": lambda x, weight: F.rms_norm(x, (D,), weight.to(x.dtype), 1e-5)},
    )


def gated_norm(B: int, T: int, D: int, G: int) -> Contest:
    from seqloom.ops.norm import gated_group_norm

    def plain(y: Tensor, z: Tensor, weight: Tensor) -> Tensor:
        gated = (y.float() * F.silu(z.float())).unflatten(-1, (G, -1))
        normed = gated * torch.rsqrt(gated.square().mean(-1, keepdim=True) + 1e-5)
        return (normed.flatten(-2) * weight).to(z.dtype)

    return Contest(
        "norm",
        (normal(B, T, D), normal(B, T, D), normal(D)),
        lambda y, z, weight: gated_group_norm(y, z, weight, G, 1e-5),
        {"plain": plain},
    )


def squared_relu(B: int, T: int, F_: int) -> Contest:
    from seqloom.ops.squared_relu import squared_relu

    return Contest("squared_relu", (normal(B, T, F_),), squared_relu, {"plain": lambda x: F.relu(x).square()})


# --- products


def orthogonalise(N: int, R: int, C: int) -> Contest:
    """Of a layer kind's gradients, as Muon does it in every step."""
    from seqloom.ops.orthogonalise import COEFFICIENTS, ITERATIONS, orthogonalise

    def batched(x: Tensor) -> Tensor:
        a, b, c = COEFFICIENTS
        x = x / x.flatten(1).norm(dim=1).clamp(min=1e-7)[:, None, None]
        for _ in range(ITERATIONS):
            gram = x @ x.mT
            x = a * x + (b * gram + c * gram @ gram) @ x
        return x

    flops = 2.0 * N * ITERATIONS * (2 * R * R * C + R**3)
    return Contest("orthogonalise", (normal(N, R, C),), orthogonalise, {"batched": batched}, flops, backward=False)


def linear(S: int, I: int, O: int) -> Contest:  # noqa: E741  # the widths of a linear layer
    from seqloom.ops.linear import linear

    inputs = (normal(S, I), normal(O, I) / I**0.5)
    return Contest("linear", inputs, linear, {"linear": F.linear}, 6.0 * S * I * O)


def linear_few(S: int, I: int, O: int) -> Contest:  # noqa: E741
    """Few rows, as in decoding."""
    return linear(S, I, O)._replace(flops=2.0 * S * I * O, backward=False)


def attention(B: int, T: int, H: int, G: int, K: int) -> Contest:
    from seqloom.ops.attention import attention

    def softmax(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        k, v = (part.repeat_interleave(q.shape[1] // part.shape[1], 1) for part in (k, v))
        mask = torch.full((q.shape[2], q.shape[2]), float("-inf"), device=q.device).triu(1)
        return (q @ k.mT * q.shape[3] ** -0.5 + mask).softmax(-1).to(v.dtype) @ v

    def sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)

    inputs = (normal(B, H, T, K), normal(B, G, T, K), normal(B, G, T, K))
    return Contest("attention", inputs, attention, {"softmax": softmax, "sdpa": sdpa}, 3 * 4 * B * H * T * T * K / 2)


def experts(S: int, J: int, E: int, latent: int, hidden: int) -> Contest:
    from seqloom.ops.experts import experts

    scores = torch.randn(S, E) + 0.5 * torch.randn(E)
    weights, indices = scores.sigmoid().topk(J)
    up, down = normal(E, hidden, latent) / latent**0.5, normal(E, latent, hidden) / hidden**0.5

    def sorted_by_expert(device: torch.device) -> tuple[Tensor, Tensor]:
        flat = indices.to(device).flatten()
        return flat.argsort(stable=True), flat.bincount(minlength=E)

    def loop(x: Tensor, weights: Tensor, up: Tensor, down: Tensor) -> Tensor:
        order, counts = sorted_by_expert(x.device)
        ups, downs = up.unbind(), down.unbind()
        parts = x[order // J].split(counts.tolist())
        outputs = torch.cat([F.relu(part @ ups[e].mT).square() @ downs[e].mT for e, part in enumerate(parts)])
        return torch.zeros_like(x).index_add(0, order // J, (outputs * weights.flatten()[order, None]).to(x.dtype))

    def grouped_mm(x: Tensor, weights: Tensor, up: Tensor, down: Tensor) -> Tensor:
        order, counts = sorted_by_expert(x.device)
        ends = counts.cumsum(0, dtype=torch.int32)
        active = F.relu(F.grouped_mm(x[order // J], up.mT, offs=ends)).square()
        outputs = F.grouped_mm(active, down.mT, offs=ends)
        return torch.zeros_like(x).index_add(0, order // J, (outputs * weights.flatten()[order, None]).to(x.dtype))

    return Contest(
        "experts",
        (normal(S, latent), weights, up, down),
        lambda x, weights, up, down: experts(x, indices.to(x.device), weights, up, down),
        {"loop": loop, "grouped_mm": grouped_mm},
        12.0 * S * J * latent * hidden,
    )


def cross_entropy(S: int, D: int, V: int) -> Contest:
    from seqloom.ops.cross_entropy import linear_cross_entropy

    targets = torch.randint(V, (S,))

    def full_logits(hidden: Tensor, weight: Tensor) -> Tensor:
        logits = (hidden @ weight.to(hidden.dtype).mT).float()
        return F.cross_entropy(logits, targets.to(hidden.device), reduction="sum")

    return Contest(
        "cross_entropy",
        (normal(S, D), 0.02 * normal(V, D)),
        lambda hidden, weight: linear_cross_entropy(hidden, weight, targets.to(hidden.device)),
        {"full_logits": full_logits},
        6.0 * S * D * V,
    )


SHAPES: list[tuple[Callable[..., Contest], tuple[int, ...]]] = [
    (ssd, (8, 256, 10, 32, 32, 2, 64)),
    (ssd, (4, 512, 12, 64, 64, 2, 128)),
    (ssd, (4, 512, 24, 64, 128, 4, 128)),
    (ssd_token, (1, 24, 64, 128, 4)),
    (causal_conv, (8, 256, 448)),
    (causal_conv, (4, 512, 2560)),
    (rms_norm, (4, 512, 768)),
    (gated_norm, (4, 512, 1536, 4)),
    (squared_relu, (4, 512, 3072)),
    (linear, (2048, 160, 512)),
    (linear, (2048, 768, 3072)),
    (linear_few, (1, 768, 3072)),
    (linear_few, (8, 768, 3072)),
    (orthogonalise, (64, 160, 160)),
    (orthogonalise, (8, 768, 3072)),
    (attention, (8, 256, 4, 2, 32)),
    (attention, (1, 2048, 16, 4, 64)),
    (experts, (2048, 4, 32, 64, 160)),
    (experts, (4096, 6, 128, 256, 512)),
    (cross_entropy, (2048, 160, 4096)),
    (cross_entropy, (1024, 768, 32768)),
]
"""The widths of the models that other areas measure."""
