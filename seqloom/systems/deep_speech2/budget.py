"""What a recogniser costs: parameters, steps per second, latency, and the memory of a training.

    convolution  c_out c_in k_f k_t + 2 c_out        recurrent  directions·g H (W in) + directions' g H² + norm
    row          H (τ + 1)                           connected  D F + 2 F           head  V D + V

with g = 3 gates of a GRU or 1. Deep Speech 2, section 3 and tables 1 to 3, whose 38 M are reproduced (tests).
"""

from itertools import pairwise
from typing import Any

from seqloom.systems.deep_speech2.config import DeepSpeech2Config, Run  # light, as `seqloom list` is: no torch here


def parts(config: DeepSpeech2Config) -> dict[str, int]:
    """Parameters by part of the model."""
    plain = config.norm == "none"
    inputs = [1 if config.convolution == "2d" else config.features.bins, *(layer.channels for layer in config.conv)]
    conv = sum(
        layer.channels * channels * layer.kernel[0] * layer.kernel[1] + (1 if plain else 2) * layer.channels
        for channels, layer in zip(inputs, config.conv, strict=False)
    )
    r, width, recurrent = config.recurrent, config.front_width, 0
    both, rows = r.directions != "forward", (3 if r.kind == "gru" else 1) * r.width
    fed = 2 if both and r.inputs == "separate" else 1
    for _ in range(r.layers):
        recurrent += fed * rows * width + (2 if both else 1) * rows * r.width
        recurrent += {"batch": 2 * fed * rows, "input": 2 * width + fed * rows, "none": fed * rows}[config.norm]
        width = r.width * (2 if r.directions == "concat" else 1)
    connected = [width, *config.connected]
    return {
        "convolutions": conv,
        "recurrent": recurrent,
        "row_convolution": 0 if config.row_context is None else width * (config.row_context + 1),
        "connected": sum(before * after + (1 if plain else 2) * after for before, after in pairwise(connected)),
        "output": config.vocab_size * (connected[-1] + 1),
    }


def parameters(config: DeepSpeech2Config) -> int:
    """All parameters of a configuration."""
    return sum(parts(config).values())


def headline(config: DeepSpeech2Config) -> dict[str, int]:
    """What `seqloom list` prints about a model."""
    total = parameters(config)
    layers = len(config.conv) + config.recurrent.layers + (config.row_context is not None) + len(config.connected) + 1
    return {"total_parameters": total, "active_with_head": total, "layers": layers}


def describe(config: DeepSpeech2Config) -> dict[str, dict[str, Any]]:
    """What `seqloom show` prints about a model: its size, and how it follows speech."""
    from seqloom.systems.deep_speech2.features import HOP_SECONDS

    obstacle = config.obstacle_to_streaming()
    return {
        "size": {"layers": headline(config)["layers"], "total_parameters": parameters(config), **parts(config)},
        "time": {
            "outputs_per_second": f"{1 / (HOP_SECONDS * config.time_stride):.3g}",
            "can_stream": f"no: {obstacle}" if obstacle else "yes",
            "look_ahead_seconds": None if obstacle else f"{look_ahead_seconds(config):.3f}",
        },
    }


def look_ahead_seconds(config: DeepSpeech2Config) -> float:
    """Audio after a step's own first frame that the step needs to be known, for a model that can stream."""
    from seqloom.data.audio import RATE
    from seqloom.systems.deep_speech2.features import HOP, WINDOW

    frames, stride = 0, 1
    for layer in config.conv:
        frames += layer.kernel[1] // 2 * stride
        stride *= layer.stride[1]
    frames += (config.row_context or 0) * stride
    return (frames * HOP + WINDOW) / RATE


def training_bytes(run: Run) -> int:
    """Estimated peak of all tensors of a training whose longest utterances fill a minibatch.

    Weights, gradients and AdamW's two averages, and what autograd keeps of the longest batch.
    """
    from seqloom.data.audio import RATE
    from seqloom.systems.deep_speech2.features import frame_count

    rows = run.task.micro_rows or run.task.batch_rows
    frames = frame_count(round(run.task.data.max_seconds * (1 + run.task.augment.speed) * RATE))
    return 16 * parameters(run.model) + 4 * rows * _kept(run.model, frames)


def _kept(config: DeepSpeech2Config, frames: int) -> int:
    """Numbers that autograd keeps of one utterance, and those of the layer in work."""
    r, normed = config.recurrent, config.norm != "none"
    height = config.features.bins if config.convolution == "2d" else 1
    kept, steps = 2 * config.features.bins * frames, frames
    for layer in config.conv:
        height, steps = (height - 1) // layer.stride[0] + 1, (steps - 1) // layer.stride[1] + 1
        kept += (3 if normed else 2) * layer.channels * height * steps
    width, gates, both = config.front_width, 3 if r.kind == "gru" else 1, r.directions != "forward"
    for _ in range(r.layers):
        kept += steps * (width + (2 if both else 1) * r.width * (gates + 2) + gates * r.width)
        width = r.width * (2 if r.directions == "concat" else 1)
    kept += 0 if config.row_context is None else 2 * steps * width
    for after in config.connected:
        kept += steps * (width + 3 * after)
        width = after
    return kept + steps * (width + 3 * config.vocab_size)
