"""A recogniser of our parts and the same one of torch's layers, and a training step of either.

torch's GRU multiplies its input itself, so what is normalised here is that input and not the product, and each
direction has input weights of its own. Utterances have one length: torch's batch normalization knows no padding.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.speech_ops import in_order_of_torch

LAYERS = "torch_layers"
LR, BETAS, EPS = 1e-3, (0.9, 0.99), 1e-8
TOY = "toy"
SIZES = ("tiny", "an4")
"""Recipes."""


def shapes(size: str) -> Any:
    """The network of a size."""
    from seqloom.systems.deep_speech2.config import ConvConfig, DeepSpeech2Config, FeatureConfig, RecurrentConfig
    from seqloom.systems.deep_speech2.recipes import an4, tiny

    if size == TOY:
        return DeepSpeech2Config(
            features=FeatureConfig(bins=16),
            conv=(ConvConfig(channels=3, kernel=(5, 5), stride=(2, 2)),),
            recurrent=RecurrentConfig(kind="gru", layers=1, width=8, inputs="separate"),
            norm="input",
        )
    model = {"tiny": tiny, "an4": an4}[size]().model
    return replace(model, norm="input", recurrent=replace(model.recurrent, inputs="separate"))


def our_step(model: Any, batch: Tensor, targets: Tensor) -> Callable[[], float]:
    """A step as the training loop takes it."""
    from seqloom.ops.ctc import ctc_loss
    from seqloom.train.config import OptimizerConfig
    from seqloom.train.optimizers import build_optimizers

    settings = OptimizerConfig(lr=LR, beta1=BETAS[0], beta2=BETAS[1], eps=EPS, weight_decay=0.0)
    optimizers = build_optimizers(model, settings)
    lengths, counts = torch.full((len(batch),), batch.shape[2]), torch.full((len(batch),), targets.shape[1])

    def step() -> float:
        logits, steps = model(batch, lengths)
        loss = ctc_loss(logits, steps, targets, counts).sum() / len(batch)
        loss.backward()
        optimizers.step(1.0)
        model.zero_grad()
        return float(loss.detach())

    return step


def their_step(model: "TorchLayers", batch: Tensor, targets: Tensor) -> Callable[[], float]:
    """A step as one would write it with torch alone."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=LR, betas=BETAS, eps=EPS, weight_decay=0.0, fused=True)
    counts = torch.full((len(batch),), targets.shape[1])

    def step() -> float:
        log_probs = model(batch).log_softmax(-1).transpose(0, 1)
        steps = torch.full((len(batch),), len(log_probs))
        loss = F.ctc_loss(log_probs, targets, steps, counts, reduction="sum") / len(batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return float(loss.detach())

    return step


class TorchLayers(nn.Module):
    """The same network of torch's own layers, with the same weights, for utterances of equal length."""

    def __init__(self, config: Any, model: Any) -> None:
        super().__init__()
        self.clip = config.clip
        self.convs, self.norms = nn.ModuleList(), nn.ModuleList()
        for ours in model.conv:
            old = ours.conv
            conv = nn.Conv2d(
                old.in_channels, old.out_channels, old.kernel_size, old.stride, padding=old.padding, bias=False
            )
            conv.weight.data.copy_(old.weight)
            self.convs.append(conv)
            self.norms.append(nn.BatchNorm2d(old.out_channels))
        self.input_norms, self.grus = nn.ModuleList(), nn.ModuleList()
        for ours in model.recurrent:
            rows, width = ours.recurrent.shape[0], ours.input.weight.shape[1]
            layer = nn.GRU(width, rows // 3, batch_first=True, bidirectional=True)
            halves = zip(
                ("", "_reverse"), ours.input.weight.chunk(2), (ours.recurrent, ours.recurrent_back), strict=True
            )
            for direction, w, u in halves:
                getattr(layer, f"weight_ih_l0{direction}").data.copy_(in_order_of_torch(w))
                getattr(layer, f"weight_hh_l0{direction}").data.copy_(in_order_of_torch(u))
                getattr(layer, f"bias_ih_l0{direction}").data.zero_()
                second = getattr(layer, f"bias_hh_l0{direction}")
                second.data.zero_()
                second.requires_grad_(False)  # one bias is enough, and ours has one
            self.grus.append(layer)
            self.input_norms.append(nn.BatchNorm1d(width))
        self.head = nn.Linear(model.head.weight.shape[1], model.head.weight.shape[0])
        self.head.load_state_dict({"weight": model.head.weight, "bias": model.head.bias})

    def forward(self, x: Tensor) -> Tensor:
        x = x[:, None]
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = norm(conv(x)).clamp(0, self.clip)
        x = x.flatten(1, 2).transpose(1, 2)
        for norm, layer in zip(self.input_norms, self.grus, strict=True):
            both = layer(norm(x.transpose(1, 2)).transpose(1, 2))[0]
            x = sum(both.chunk(2, -1))  # type: ignore[assignment]
        return self.head(x)


def training_flops(config: Any, rows: int, frames: int) -> float:
    """Three times the products of the forward pass."""
    products, channels, bins, steps = 0, 1, config.features.bins, frames
    for layer in config.conv:
        bins, steps = (bins - 1) // layer.stride[0] + 1, (steps - 1) // layer.stride[1] + 1
        products += bins * steps * channels * layer.channels * layer.kernel[0] * layer.kernel[1]
        channels = layer.channels
    width, hidden = channels * bins, config.recurrent.width
    for _ in range(config.recurrent.layers):
        products += steps * 2 * 3 * hidden * (width + hidden)
        width = hidden
    return 3.0 * 2 * rows * (products + steps * width * config.vocab_size)
