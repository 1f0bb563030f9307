"""Looking at a model in the middle of training without leaving a trace in what it learns."""

import contextlib
from collections.abc import Iterator

import torch
from torch import nn

from seqloom.core.seeds import capture_rng, restore_rng


@contextlib.contextmanager
def untraced(model: nn.Module) -> Iterator[None]:
    """After the block torch's generators, the model's buffers and its mode are as they were before, however it ends."""
    generators, training = capture_rng(), model.training
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    try:
        yield
    finally:
        restore_rng(generators)
        model.train(training)
        with torch.no_grad():
            for buffer, kept in buffers:
                buffer.copy_(kept)
