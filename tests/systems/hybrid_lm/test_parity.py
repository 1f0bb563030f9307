"""Our model against the reference that walks token by token, however the tokens are fed: at once, in pieces, padded,
packed, ragged. A list of the usual mistakes, each put into the reference, shows that the comparison would notice them.
"""

import dataclasses
import functools
import tempfile
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from reference_hybrid import ReferenceHybrid, nats, silu
from seqloom.nn.state import MambaState
from seqloom.systems.hybrid_lm.model import HybridLM
from tiny_models import VARIANTS, make, tokens

TOLERANCE = 2e-5
"""For logits whose largest is around 4."""

SPLITS = (1, 3, 4, 15, 16, 17, 39)  # around the taps, the chunk of 16, and the end of 40 tokens


def reference_of(model):
    with tempfile.TemporaryDirectory() as folder:
        model.write_folder(Path(folder))
        return ReferenceHybrid.open(Path(folder))


@functools.cache
def model_and_reference(name):
    model = make(name)
    return model, reference_of(model)


def stacked(arrays):
    return torch.from_numpy(np.stack(arrays))


def logits_of(reference, ids):
    return stacked([reference.run(row).logits for row in ids.tolist()]).float()


@functools.cache
def walked(name):
    """What the reference saw in both rows."""
    return [model_and_reference(name)[1].run(row) for row in tokens().tolist()]


@functools.cache
def expected(name):
    return stacked([seen.logits for seen in walked(name)]).float()


def close(found, wanted):
    torch.testing.assert_close(found, wanted, atol=TOLERANCE, rtol=0)


@pytest.fixture(autouse=True)
def _no_gradients():
    with torch.no_grad():
        yield


@pytest.mark.parametrize("name", VARIANTS)
def test_logits_equal_the_reference(name):
    assert 3 < expected(name).abs().max() < 6
    close(model_and_reference(name)[0](tokens()), expected(name))


@pytest.mark.parametrize("name", ["moe", "grouped"])
def test_routers_choose_what_the_reference_chooses(name):
    model, _ = model_and_reference(name)
    chosen = []
    handles = [
        moe.gate.register_forward_hook(lambda _, __, out: chosen.append(out[0].sort(-1).values))
        for moe in model.expert_layers()
    ]
    model(tokens())
    for handle in handles:
        handle.remove()
    for number, mine in zip(walked(name)[0].chosen, chosen, strict=True):
        wanted = stacked([np.sort(seen.chosen[number]) for seen in walked(name)]).flatten(0, 1)
        assert torch.equal(mine, wanted)


@pytest.mark.parametrize("name", ["dense", "latent"])
def test_fresh_weights_agree_too(name):
    torch.manual_seed(0)
    model = HybridLM(VARIANTS[name]).eval()
    close(model(tokens()), logits_of(reference_of(model), tokens()))


def with_low_dt(bias):
    model = make("dense")
    for layer in model.backbone.layers:
        if hasattr(layer.mixer, "dt_bias"):
            layer.mixer.dt_bias.fill_(bias)
    return model


@pytest.mark.parametrize("bias", [-3, -5, -6, -8])
def test_small_steps_have_no_floor(bias):
    model = with_low_dt(bias)
    close(model(tokens()), logits_of(reference_of(model), tokens()))


def gate_after_norm(self, y, z, weight, groups):
    grouped = y.reshape(groups, -1)
    return weight * (grouped / np.sqrt(np.mean(grouped**2, axis=1, keepdims=True) + self.eps)).ravel() * silu(z)


MISTAKES = {
    "B and C swapped": ("moe", {"b_and_c": lambda self, pair: (pair[1], pair[0])}),
    "heads dealt to groups one by one": ("moe", {"group": lambda self, head, heads, groups: head % groups}),
    "A without its exponential": ("moe", {"rate": lambda self, a_log: -a_log}),
    "A positive": ("moe", {"rate": lambda self, a_log: np.exp(a_log)}),
    "dt capped at 0.1": ("moe", {"step_size": lambda self, raw, bias: np.minimum(np.logaddexp(0, raw + bias), 0.1)}),
    "taps reversed": ("moe", {"tap": lambda self, weight, back: weight[:, 0, back]}),
    "no D": ("moe", {"skip": lambda self, d: 0.0}),
    "norm over all channels": ("moe", {"gated_norm": lambda self, *to: ReferenceHybrid.gated_norm(self, *to[:-1], 1)}),
    "gate after the norm": ("moe", {"gated_norm": gate_after_norm}),
    "ReLU not squared": ("moe", {"activation": lambda self, x: np.maximum(x, 0)}),
    "softmax router": ("moe", {"scores": lambda self, logits: np.exp(logits) / np.exp(logits).sum()}),
    "router bias ignored": ("moe", {"selection": lambda self, scores, bias: scores}),
    "router weights with the bias": (
        "moe",
        {"expert_weights": lambda self, _, selection, chosen: 2.5 * selection[chosen] / selection[chosen].sum()},
    ),
    "router weights not made to sum to one": ("moe", {"total": lambda self, weights: 1.0}),
    "routed experts not scaled": ("moe", {"scaling": lambda self: 1.0}),
    "best expert speaks for its group": ("grouped", {"group_score": lambda self, selection: selection.max()}),
    "attention scaled by the model width": ("moe", {"scale": lambda self, head_width: 64**-0.5}),
    "key-value heads dealt one by one": ("moe", {"kv_head": lambda self, head, heads, kv_heads: head % kv_heads}),
    "epsilon 1e-6": ("moe", {"eps": 1e-6}),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_the_usual_mistakes_show(mistake):
    name, wrong = MISTAKES[mistake]
    reference = model_and_reference(name)[1]
    mistaken = type("Mistaken", (ReferenceHybrid,), {})(reference.fields, reference.tensors)
    for member, value in wrong.items():
        setattr(mistaken, member, functools.partial(value, mistaken) if callable(value) else value)
    assert (logits_of(mistaken, tokens()) - expected(name)).abs().max() > 20 * TOLERANCE


def test_a_floor_under_dt_shows_where_steps_are_small():
    reference = reference_of(with_low_dt(-8))
    wanted = logits_of(reference, tokens())
    reference.step_size = lambda raw, bias: np.maximum(np.logaddexp(0, raw + bias), 1e-3)
    assert (logits_of(reference, tokens()) - wanted).abs().max() > 20 * TOLERANCE


@pytest.mark.parametrize("name", VARIANTS)
def test_cached_steps_and_the_states_they_leave(name):
    model, ids = model_and_reference(name)[0], tokens()
    states = model.new_states(2)
    parts = [model(ids[:, a:b], states=states) for a, b in pairwise([0, *range(30, 41)])]
    close(torch.cat(parts, 1), expected(name))
    for number, state in enumerate(states):
        if isinstance(state, MambaState):
            torch.testing.assert_close(
                state.ssm, stacked([seen.ssm[number] for seen in walked(name)]).float(), atol=TOLERANCE, rtol=1e-5
            )
            close(state.window, stacked([seen.window[number] for seen in walked(name)]).float())


@pytest.mark.full
@pytest.mark.parametrize("name", VARIANTS)
def test_prefill_in_two_pieces(name):
    model, ids = model_and_reference(name)[0], tokens()
    for split in SPLITS:
        states = model.new_states(2)
        close(torch.cat([model(part, states=states) for part in ids.split([split, 40 - split], 1)], 1), expected(name))


@pytest.mark.parametrize("name", ["dense", "latent"])
def test_prefill_in_any_two_pieces_of_a_short_row(name):
    ids = tokens()[:, :9]
    model = make(name, mamba=dataclasses.replace(VARIANTS[name].mamba, chunk=4))
    for split in range(1, 9):
        states = model.new_states(2)
        parts = [model(part, states=states) for part in ids.split([split, 9 - split], 1)]
        close(torch.cat(parts, 1), expected(name)[:, :9])


@pytest.mark.full
@pytest.mark.parametrize("name", VARIANTS)
def test_pieces_of_the_scan_change_nothing(name):
    for chunk in (1, 5, 64):
        model = make(name, mamba=dataclasses.replace(VARIANTS[name].mamba, chunk=chunk))
        close(model(tokens()), expected(name))


@pytest.mark.parametrize("name", VARIANTS)
def test_rows_of_different_lengths_go_on_together(name):
    model, reference = model_and_reference(name)
    ids = tokens(batch=4, length=30)
    wanted = logits_of(reference, ids)
    lengths = torch.tensor([12, 1, 25, 7])
    states, prefilled = model.new_states(0), [model.new_states(1) for _ in lengths]
    for row, alone in enumerate(prefilled):
        model(ids[row : row + 1, : lengths[row]], states=alone)
    for layer, *alone in zip(states, *prefilled, strict=True):
        if layer is not None:
            layer.join(alone)
    rows = torch.arange(4)
    for step in range(5):
        if step == 3:  # one row has ended
            rows = torch.tensor([3, 0, 2])
            for layer in states:
                if layer is not None:
                    layer.select(rows)
        here = lengths[rows] + step
        close(model(ids[rows, here][:, None], states=states)[:, 0], wanted[rows, here])


@pytest.mark.parametrize("name", VARIANTS)
def test_padding_on_the_left(name):
    model, ids = model_and_reference(name)[0], tokens()
    padding = torch.tensor([6, 17])
    padded = torch.zeros(2, 57, dtype=torch.int64)
    documents = torch.full((2, 57), -1)
    for row, size in enumerate(padding):
        padded[row, size : size + 40] = ids[row]
        documents[row, size : size + 40] = 0
    logits = model(padded, documents)
    for row, size in enumerate(padding):
        close(logits[row, size : size + 40], expected(name)[row])


@pytest.mark.parametrize("name", VARIANTS)
def test_packed_documents(name):
    model, reference = model_and_reference(name)
    ids, borders = tokens(), [0, 2, 13, 29, 40]
    documents = torch.bucketize(torch.arange(40), torch.tensor(borders[1:]), right=True).expand(2, -1)
    packed = model(ids, documents)
    for first, last in pairwise(borders):
        close(packed[:, first:last], logits_of(reference, ids[:, first:last]))
    other = ids.clone()
    other[:, :13] = tokens(length=13, seed=5)
    # Where experts group tokens, another document's tokens may change the shape of a product and so its rounding.
    tolerance = 5e-6 if "E" in model.config.pattern else 0.0
    torch.testing.assert_close(model(other, documents)[:, 13:], packed[:, 13:], atol=tolerance, rtol=0)


def on_disk(name, tensor):
    """A parameter's tensor in the pieces that files hold."""
    if not name.endswith((".experts.up_proj", ".experts.down_proj")):
        return {name: tensor.numpy()}
    stem, leaf = name.rsplit(".", 1)
    return {f"{stem}.{expert}.{leaf}.weight": matrix.numpy() for expert, matrix in enumerate(tensor)}


@pytest.mark.full
@pytest.mark.parametrize("name", ["dense", "mtp"])
@torch.enable_grad()
def test_the_gradient_of_every_tensor_is_the_slope_of_the_reference(name):
    """Along a random direction, by central differences in float64; with the prediction block also of its losses."""
    model, reference = make(name), model_and_reference(name)[1]
    ids = tokens(batch=1, length=8)
    row = ids[0].tolist()
    depths = 2 if model.mtp is not None else 0

    def loss_of_reference():
        losses = [nats(reference.head(h), row[1 + k :]) for k, h in enumerate(reference.look_ahead(row, depths))]
        return losses[0] + 0.15 * sum(losses[1:])

    hidden, _ = model.hidden(ids)
    results = [hidden, *(model.look_ahead(hidden, ids, None, depths)[0] if depths else [])]
    losses = [F.cross_entropy(model.head(h)[0, : -1 - k], ids[0, 1 + k :]) for k, h in enumerate(results)]
    (losses[0] + 0.15 * sum(losses[1:])).backward()

    generator = torch.Generator().manual_seed(0)
    step = 1e-5
    for parameter_name, parameter in model.named_parameters():
        direction = torch.randn(parameter.shape, generator=generator)
        losses = []
        for way in (step, -step):
            moved = {
                file_name: reference.tensors[file_name] + way * part
                for file_name, part in on_disk(parameter_name, direction).items()
            }
            kept = {file_name: reference.tensors[file_name] for file_name in moved}
            reference.tensors |= moved
            losses.append(loss_of_reference())
            reference.tensors |= kept
        slope = (losses[0] - losses[1]) / (2 * step)
        gap = abs(slope - float((parameter.grad * direction).sum()))
        assert gap <= 2e-5 * float(parameter.grad.norm()), parameter_name
