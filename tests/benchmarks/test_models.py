"""The least work and traffic that ceilings are made of, against what torch counts and what tensors weigh."""

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.models import SIZES, build, decoding_bytes, prefill_flops, training_flops
from seqloom.nn.state import KVState, MambaState

TOY = SIZES["toy"]


def test_training_counts_three_times_the_products_of_the_forward_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEQLOOM_KERNELS", "torch")
    model = build(replace(TOY, pattern="--", mamba=None, attention=None), "fp32")
    tokens = torch.randint(512, (2, 64))
    with FlopCounterMode(display=False) as counter:
        model(tokens).sum().backward()
    assert training_flops(model.config, 2, 64) == pytest.approx(counter.get_total_flops(), rel=0.01)


def test_attention_counts_half_the_row(monkeypatch: pytest.MonkeyPatch) -> None:
    without = replace(TOY, pattern="M-", attention=None)
    added = training_flops(TOY, 1, 64) - training_flops(without, 1, 64)
    projections, scores = 2 * (32 + 2 * 32 * 16 * 3), 2 * 64 * 2 * 16
    assert added == 3 * 64 * (projections + scores)
    assert prefill_flops(TOY, 64) < training_flops(TOY, 1, 64) / 3


def test_a_decoding_step_reads_the_weights_and_what_is_remembered() -> None:
    model = build(TOY, "fp32")
    states = model.new_states(3)
    model(torch.randint(512, (3, 40)), states=states)
    weights = sum(p.nbytes for p in model.parameters()) - model.backbone.embeddings.weight.nbytes
    kv = sum(state.nbytes for state in states if isinstance(state, KVState))
    ssm = sum(state.ssm.nbytes for state in states if isinstance(state, MambaState))
    assert decoding_bytes(TOY, "fp32", 3, 40) == weights + kv + 2 * ssm


def test_more_rows_touch_more_experts() -> None:
    one, few, many = (decoding_bytes(SIZES["moe"], "fp32", rows, 0) for rows in (1, 8, 1000))
    assert one < few < many
    assert many - 1000 * 2 * 4 * 3 * 320 * 32 == pytest.approx(4 * weights(SIZES["moe"]), rel=1e-3)


def weights(config: object) -> int:
    model = build(config, "fp32")  # type: ignore[arg-type]
    return sum(p.numel() for p in model.parameters()) - model.backbone.embeddings.weight.numel()
