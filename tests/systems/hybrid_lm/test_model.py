"""The whole model: caching, packing, look-ahead against a plain second opinion, recomputation."""

from itertools import pairwise

import pytest
import torch
from torch.nn import functional as F

from seqloom.data.rows import Rows
from seqloom.systems.hybrid_lm.loss import targets_ahead
from tiny_models import VARIANTS, make, tokens


def close(a, b, tolerance=2e-5):
    torch.testing.assert_close(a, b, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("name", VARIANTS)
def test_cached_steps_and_chunks_equal_the_full_pass(name):
    model, ids = make(name), tokens()
    with torch.no_grad():
        full = model(ids)
        for cuts in ([0, 20, *range(21, 41)], [0, 1, 17, 40]):
            states = model.new_states(2)
            parts = [model(ids[:, a:b], states=states) for a, b in pairwise(cuts)]
            close(torch.cat(parts, 1), full)


@pytest.mark.parametrize("name", VARIANTS)
def test_a_document_never_sees_the_one_before_it(name):
    model, ids = make(name), tokens()
    documents = torch.arange(40).ge(13).int().expand(2, -1)
    other = ids.clone()
    other[:, :13] = tokens(length=13, seed=5)
    with torch.no_grad():
        packed = model(ids, documents)
        # Where experts group tokens, another document's tokens may change the shape of a product and so its rounding.
        close(packed[:, 13:], model(other, documents)[:, 13:], 2e-6 if "E" in model.config.pattern else 0.0)
        close(packed[:, 13:], model(ids[:, 13:]))
        close(packed[:, :13], model(ids[:, :13]))


def look_ahead_by_hand(model, ids, hidden, depth):
    """The prediction block written out once more, from its tensors alone, for one document without padding."""
    block = dict(model.mtp.named_parameters())

    def norm(x, name):
        return x / torch.sqrt(x.square().mean(-1, keepdim=True) + 1e-5) * block[name]

    ahead = torch.zeros(*ids.shape, 64)
    ahead[:, :-depth] = model.backbone.embeddings.weight[ids[:, depth:]]
    fused = torch.cat([norm(ahead, "layers.0.enorm.weight"), norm(hidden, "layers.0.hnorm.weight")], -1)
    x = fused @ block["layers.0.eh_proj.weight"].T

    u = norm(x, "layers.0.norm.weight")
    q, k, v = ((u @ block[f"layers.0.mixer.{n}_proj.weight"].T).unflatten(-1, (-1, 16)).transpose(1, 2) for n in "qkv")
    k, v = k.repeat_interleave(2, 1), v.repeat_interleave(2, 1)
    scores = (q @ k.transpose(-1, -2) / 4).masked_fill(torch.ones(40, 40).triu(1).bool(), -torch.inf)
    x = x + (scores.softmax(-1) @ v).transpose(1, 2).flatten(-2) @ block["layers.0.mixer.o_proj.weight"].T

    u = norm(x, "layers.1.norm.weight")
    gate = model.mtp.layers[1].mixer.gate
    score = torch.sigmoid(u @ gate.weight.T)
    picked = (score + gate.e_score_correction_bias).topk(2, -1).indices
    weight = score.gather(-1, picked)
    weight = 2.5 * weight / weight.sum(-1, keepdim=True)
    low = u @ block["layers.1.mixer.fc1_latent_proj.weight"].T
    routed = torch.zeros_like(low)
    for expert in range(8):
        share = (weight * (picked == expert)).sum(-1, keepdim=True)
        up, down = block["layers.1.mixer.experts.up_proj"][expert], block["layers.1.mixer.experts.down_proj"][expert]
        routed = routed + share * (F.relu(low @ up.T).square() @ down.T)
    shared_up = block["layers.1.mixer.shared_experts.up_proj.weight"]
    shared_down = block["layers.1.mixer.shared_experts.down_proj.weight"]
    x = x + routed @ block["layers.1.mixer.fc2_latent_proj.weight"].T + F.relu(u @ shared_up.T).square() @ shared_down.T
    return norm(x, "layers.1.final_layernorm.weight")


def test_look_ahead_equals_the_block_written_out():
    model, ids = make("mtp"), tokens()
    with torch.no_grad():
        hidden, _ = model.hidden(ids)
        results, _ = model.look_ahead(hidden, ids, None, 2)
        first = look_ahead_by_hand(model, ids, hidden, 1)
        close(results[0], first)
        close(results[1], look_ahead_by_hand(model, ids, first, 2))


def test_look_ahead_stops_at_document_borders():
    model, ids = make("mtp"), tokens(batch=1)
    documents = torch.arange(40).ge(13).int()[None]
    with torch.no_grad():
        packed, _ = model.look_ahead(model.hidden(ids, documents)[0], ids, documents, 2)
        for part in (slice(0, 13), slice(13, 40)):
            alone, _ = model.look_ahead(model.hidden(ids[:, part])[0], ids[:, part], None, 2)
            for a, b in zip(packed, alone, strict=True):
                close(a[:, part], b)


def test_first_draft_step_equals_training_depth_one():
    model, ids = make("mtp"), tokens()
    with torch.no_grad():
        hidden, _ = model.hidden(ids)
        trained, _ = model.look_ahead(hidden, ids, None, 1)
        states = model.mtp.new_states(2)
        model.draft(hidden[:, :20], ids[:, 1:21], states)
        close(model.draft(hidden[:, 20:21], ids[:, 21:22], states), trained[0][:, 20:21])


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
