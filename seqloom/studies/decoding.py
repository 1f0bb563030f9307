"""What a token costs when much came before it: time and memory by context, beside what bytes alone predict.

    bytes of a step = W + b (T kv + 2 state)        W weights, kv per token, state read and written, b rows

A machine that only waits for memory takes time in proportion, so the ratio of two models' bytes predicts the ratio of
their times. Keys, values and states are filled at random: what they hold changes no time and no size.
Paper: Nemotron-H, section on throughput; Nemotron 3, context cost.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from seqloom.core.config import to_data
from seqloom.studies.measured import measured
from seqloom.systems.hybrid_lm.budget import budget, state_budget
from seqloom.systems.hybrid_lm.config import HybridConfig

HYBRID, TRANSFORMER = "hybrid", "transformer"
STEPS, TURNS = 16, 5
WIDE = 4
"""Bytes of a number: decoding is measured in FP32, which every processor computes alike."""


@dataclass(frozen=True, kw_only=True)
class Point:
    """One model at one context.

    Attributes:
        seconds: of a token, median over turns.
        state_bytes: what was remembered, as the states themselves count it.
        predicted_state_bytes: the same from the formula.
        step_bytes: memory traffic of a token, from the formula.
    """

    model: str
    context: int
    seconds: float
    state_bytes: int
    predicted_state_bytes: int
    step_bytes: int


@dataclass(frozen=True, kw_only=True)
class Compared:
    """A hybrid and a Transformer, among others, at growing contexts."""

    points: Sequence[Point]

    def at(self, model: str, context: int) -> Point:
        return next(point for point in self.points if (point.model, point.context) == (model, context))

    @property
    def contexts(self) -> list[int]:
        return sorted({point.context for point in self.points})

    def gain(self, context: int) -> float:
        """How many times longer the Transformer takes for a token than the hybrid."""
        return self.at(TRANSFORMER, context).seconds / self.at(HYBRID, context).seconds

    def predicted_gain(self, context: int) -> float:
        return self.at(TRANSFORMER, context).step_bytes / self.at(HYBRID, context).step_bytes


def measure(models: Mapping[str, HybridConfig], contexts: Sequence[int], path: Path) -> tuple[list[Point], str]:
    """Time all models at all contexts, in turns; results are kept in a file, and read from it the next time.

    Returns:
        the points, and the machine they were measured on.
    Raises:
        CheckpointError: the file cannot be written.
    """
    settings = {"models": {name: to_data(config) for name, config in models.items()}, "contexts": list(contexts)}
    found, machine = measured(path, settings, lambda: [asdict(each) for at in contexts for each in _at(models, at)])
    return [Point(**each) for each in found], machine


def step_bytes(config: HybridConfig, context: int) -> int:
    """Memory traffic of one row's next token, from shapes alone."""
    weights = budget(config).active_with_head
    state = state_budget(config)
    return WIDE * weights + state.kv_bytes_per_token // 2 * WIDE * context + 2 * state_bytes(config)


def state_bytes(config: HybridConfig) -> int:
    """Bytes of Mamba state of a row as held here: an FP32 matrix, and a window without the column never read again."""
    state = state_budget(config)
    windows = state.conv_elements // config.mamba.conv_width if config.mamba is not None else 0
    return state.ssm_bytes + WIDE * (state.conv_elements - windows)


def _at(models: Mapping[str, HybridConfig], context: int) -> list[Point]:
    """Every model at one context, taking turns so that a busy machine slows all alike."""
    import torch

    with torch.inference_mode():
        opened = {name: _open(config, context) for name, config in models.items()}
        held = {
            name: sum(state.nbytes for state in states if state is not None) for name, (_, states) in opened.items()
        }
        times: dict[str, list[float]] = {name: [] for name in models}
        for turn in range(TURNS + 1):
            for name, (model, states) in opened.items():
                marks = [state and state.snapshot() for state in states]
                token = torch.zeros(1, 1, dtype=torch.int64)
                start = time.perf_counter()
                for _ in range(STEPS):
                    token = model(token, states=states).argmax(-1)
                if turn:
                    times[name].append((time.perf_counter() - start) / STEPS)
                for state, mark in zip(states, marks, strict=True):
                    if state is not None:
                        state.restore(mark)
    return [
        Point(
            model=name,
            context=context,
            seconds=float(f"{median(times[name]):.4g}"),
            state_bytes=held[name],
            predicted_state_bytes=state_budget(config).kv_bytes_per_token // 2 * WIDE * context + state_bytes(config),
            step_bytes=step_bytes(config, context),
        )
        for name, config in models.items()
    ]


def _open(config: HybridConfig, context: int) -> tuple[Any, list[Any]]:
    """A fresh model, and states as after so many tokens."""
    import torch

    from seqloom.nn.state import KVState, MambaState

    torch.manual_seed(0)
    model = config.build().eval()
    states = model.new_states(1)
    for state in states:
        if isinstance(state, KVState):
            assert config.attention is not None
            shape = (1, config.attention.kv_heads, context, config.attention.head_width)
            state.append(torch.randn(shape), torch.randn(shape))
        elif isinstance(state, MambaState):
            window, ssm = state.snapshot()
            state.restore((torch.randn_like(window), torch.randn_like(ssm)))
    return model, states
