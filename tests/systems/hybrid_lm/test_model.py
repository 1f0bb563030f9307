"""The whole model in training: targets ahead, recomputation, balance. What it computes is in `test_parity.py`."""

import pytest
import torch

from seqloom.data.rows import Rows
from seqloom.systems.hybrid_lm.loss import targets_ahead
from tiny_models import make, tokens


def test_targets_ahead_shift_within_documents():
    documents = torch.tensor([[0, 0, 0, 0, 1, 1, -1]])
    ids = torch.tensor([[1, 5, 6, 2, 1, 9, 0]])
    targets = torch.tensor([[5, 6, 2, -100, 9, -100, -100]])
    rows = Rows(ids, targets, documents)
    assert targets_ahead(rows, 1).tolist() == [[6, 2, -100, -100, -100, -100, -100]]
    assert targets_ahead(rows, 2).tolist() == [[2, -100, -100, -100, -100, -100, -100]]


def test_recomputation_changes_no_gradient():
    ids = tokens()
    grads = []
    for recompute in (False, True):
        model = make("latent").train()
        model.checkpoint_layers = recompute
        hidden, routings = model.hidden(ids)
        (model.head(hidden).square().sum() + sum(r.balance for r in routings)).backward()
        grads.append([p.grad for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


@pytest.mark.parametrize("pattern", ["M-M*-", "M*M-", "MEM*E", "--"])
def test_remembering_leaves_the_states_of_a_full_pass(pattern):
    model, ids = make("latent", pattern=pattern), tokens()
    with torch.no_grad():
        full, brief = model.new_states(len(ids)), model.new_states(len(ids))
        for part in (ids[:, :3], ids[:, 3:]):  # few tokens go another way
            model.hidden(part, states=full)
            model.remember(part, brief)
        after = [model.hidden(ids[:, :2], states=states)[0] for states in (full, brief)]
    assert torch.equal(*after)


def test_balance_is_one_per_token_when_even_and_counts_skip_padding():
    model, ids = make("moe").train(), tokens()
    for layer in model.expert_layers():
        layer.gate.weight.data.zero_()
    documents = torch.zeros(2, 40, dtype=torch.int32)
    documents[1, 30:] = -1
    _, routings = model.hidden(ids, documents)
    for routing in routings:
        assert float(routing.balance.detach()) == pytest.approx(70, rel=1e-5)
        assert int(routing.counts.sum()) == 70 * 2


def test_rebalancing_lifts_idle_experts():
    gate = make("moe").expert_layers()[0].gate
    before = gate.e_score_correction_bias.clone()
    gate.load += torch.tensor([40, 0, 10, 10, 10, 10, 0, 0])
    assert gate.rebalance(0.001) == pytest.approx(4.0)
    moved = gate.e_score_correction_bias - before
    torch.testing.assert_close(moved.sign(), torch.tensor([-1.0, 1, 0, 0, 0, 0, 1, 1]))
    assert int(gate.load.sum()) == 0
