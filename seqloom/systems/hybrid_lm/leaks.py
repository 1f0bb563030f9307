"""Do documents that are packed into one row see each other? Found by gradients, on the model as it will be trained.

The loss of a row's second document is derived by what the first one put in. Without a leak every such derivative is
exactly zero, in any number format: masked keys, cut windows and reset states are products with 0. A comparison of
losses under a changed first document would have to allow for rounding instead, as experts get their tokens in other
groups, and at initialisation a small leak moves the loss no more than that.
"""

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from seqloom.core.errors import ConfigError
from seqloom.core.seeds import generator
from seqloom.data.rows import NO_TARGET, Rows
from seqloom.nn.layer import Layer
from seqloom.nn.pattern import KINDS, parse_pattern
from seqloom.numerics.precision import dtype_of
from seqloom.systems.hybrid_lm.loss import cross_entropy, main_loss, targets_ahead
from seqloom.systems.hybrid_lm.model import HybridLM


def refuse_leaks(model: HybridLM) -> None:
    """
    Raises:
        ConfigError: the loss of a packed document depends on the document before it; the layers at fault are named.
    """
    rows, border = _two_documents(model)
    if not _loss_leaks(model, rows, border):
        return
    layers = [f"{name} ({kind})" for name, kind, layer in _layers(model) if _layer_leaks(model, layer, rows, border)]
    raise ConfigError(
        "packed documents leak into each other: the loss of one depends on the one before it in the row, through "
        + (", ".join(layers) or "the loss itself, as no layer does so alone")
    )


def _two_documents(model: HybridLM) -> tuple[Rows, int]:
    """A row of two documents without common tokens, the second one reaching into another chunk of the scan."""
    chunk = model.config.mamba.chunk if model.config.mamba is not None else 32
    border, length = chunk // 2 + 1, chunk + 16
    device, draw = model.lm_head.weight.device, generator(0, "leaks")
    second = (torch.arange(length) >= border).long()
    tokens = torch.randint(model.vocab_size // 2, (1, length), generator=draw) * 2 + second
    targets = torch.where(second > 0, tokens.roll(-1, 1), NO_TARGET)
    targets[:, -1] = NO_TARGET
    return Rows(tokens.to(device), targets.to(device), second[None].to(device)), border


def _loss_leaks(model: HybridLM, rows: Rows, border: int) -> bool:
    """Whether the second document's loss has a derivative by the first one's embeddings."""
    table = model.backbone.embeddings.weight
    trained = table.requires_grad
    table.requires_grad_(True)
    try:
        hidden, _ = model.hidden(rows.tokens, rows.documents)
        loss = main_loss(model, hidden, rows.targets)[0]
        if model.mtp is not None and model.config.mtp is not None:
            ahead, _ = model.look_ahead(hidden, rows.tokens, rows.documents, model.config.mtp.depth)
            for depth, state in enumerate(ahead, start=1):
                loss = loss + cross_entropy(model, state, targets_ahead(rows, depth))
        (gradient,) = torch.autograd.grad(loss, table)
    finally:
        table.requires_grad_(trained)
    return _moves(gradient[rows.tokens[0, :border]])


def _layer_leaks(model: HybridLM, layer: Layer, rows: Rows, border: int) -> bool:
    """Whether one layer alone carries something from the first document to the second."""
    shape, draw = (*rows.tokens.shape, model.config.width), generator(0, "leaks", "layer")
    x, weight = (torch.randn(shape, generator=draw).to(rows.tokens.device) for _ in range(2))
    x = x.to(dtype_of(model.format)).requires_grad_()
    y, _ = layer(x, rows.documents)
    (gradient,) = torch.autograd.grad((y.float() * weight)[:, border:].sum(), x)
    return _moves(gradient[:, :border])


def _layers(model: HybridLM) -> Iterator[tuple[str, str, Layer]]:
    """Name, kind and module of every layer, those of the prediction block last."""
    stacks = [("backbone.layers", model.config.pattern, model.backbone.layers)]
    if model.mtp is not None and model.config.mtp is not None:
        stacks.append(("mtp.layers", model.config.mtp.pattern, model.mtp.layers))
    for home, pattern, layers in stacks:
        for number, (letter, layer) in enumerate(zip(parse_pattern(pattern), layers, strict=True)):
            yield f"{home}.{number}", KINDS[letter], layer


def _moves(gradient: Float[Tensor, "..."]) -> bool:
    return bool((gradient.abs() > 0).any())
