"""One suite over every layer kind, plain and with stability methods: what each must do whatever it computes."""

import copy
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from seqloom.nn.init import initialise
from seqloom.nn.stability import Stability
from seqloom.systems.hybrid_lm.budget import layer_parameters
from seqloom.systems.hybrid_lm.model import HybridLM, make_layer
from tiny_models import VARIANTS, excite, make

KINDS = {"mamba": ("M", "dense"), "attention": ("*", "dense"), "mlp": ("-", "dense"), "moe": ("E", "moe"),
         "latent_moe": ("E", "latent"), "grouped_moe": ("E", "grouped"),
         "mamba+outside": ("M", "outside"), "attention+inside": ("*", "inside"), "attention+outside": ("*", "outside"),
         "attention+clipped": ("*", "clipped"), "mlp+outside": ("-", "outside"),
         "latent_moe+outside": ("E", "outside")}  # fmt: skip
CONFIGS = VARIANTS | {
    # What attention computes, and what is put around it and the other mixers.
    "inside": replace(VARIANTS["dense"], stability=Stability(qk_norm=True, v_norm="head", pre_norm=False,
                                                             soft_cap=3.0, inverse_temperature=0.7, per_head=True)),
    "outside": replace(VARIANTS["latent"], stability=Stability(output_norm=True, layer_scale=0.5, sigma_reparam=True)),
    "clipped": replace(VARIANTS["dense"], stability=Stability(qk_norm=True, v_norm="width", soft_clip=(-0.03, 1.03),
                                                              norm="rms")),
}  # fmt: skip
SPLITS = [1, 3, 4, 15, 16, 17, 38]
TIGHT = 2e-5


@pytest.fixture(params=KINDS)
def kind(request):
    return KINDS[request.param]


@pytest.fixture
def layer(kind):
    letter, variant = kind
    torch.manual_seed(0)
    built = make_layer(letter, CONFIGS[variant])
    return excite(built).eval()


def inputs(batch=2, length=39, seed=3):
    return torch.randn(batch, length, 64, generator=torch.Generator().manual_seed(seed))


def new_state(layer, batch):
    return layer.new_state(batch, torch.float32)


def close(a, b, tolerance=TIGHT):
    torch.testing.assert_close(a, b, atol=tolerance, rtol=tolerance)


def test_shape_and_dtype_are_kept(layer):
    x = inputs()
    y, _ = layer(x)
    assert y.shape == x.shape
    assert y.dtype == x.dtype
    assert layer(x.bfloat16())[0].dtype == torch.bfloat16


def test_parameter_count_is_the_formula(kind, layer):
    letter, variant = kind
    counted = sum(p.numel() for p in layer.parameters())
    counted += sum(b.numel() for name, b in layer.named_buffers() if name.endswith("correction_bias"))
    assert counted == layer_parameters(letter, CONFIGS[variant])


def test_no_output_depends_on_a_later_token(layer):
    x = inputs()
    changed = x.clone()
    changed[:, 20:] += 1
    close(layer(x)[0][:, :20], layer(changed)[0][:, :20], 1e-6)
    assert not torch.allclose(layer(x)[0][:, 20:], layer(changed)[0][:, 20:])


@pytest.mark.parametrize("split", SPLITS)
def test_continuing_from_state_equals_the_full_pass(layer, split):
    x = inputs()
    state = new_state(layer, 2)
    parts = [layer(x[:, :split], None, state)[0], layer(x[:, split:], None, state)[0]]
    close(torch.cat(parts, 1), layer(x)[0])


def test_single_steps_equal_the_full_pass(layer):
    x = inputs(length=9)
    state = new_state(layer, 2)
    steps = [layer(x[:, t : t + 1], None, state)[0] for t in range(9)]
    close(torch.cat(steps, 1), layer(x)[0])


def test_packed_documents_equal_separate_runs(layer):
    x = inputs(batch=1, length=39)
    borders = [0, 7, 23, 24, 39]
    documents = torch.zeros(1, 39, dtype=torch.int32)
    for number, start in enumerate(borders[:-1]):
        documents[:, start:] = number
    packed = layer(x, documents)[0]
    for start, end in pairwise(borders):
        close(packed[:, start:end], layer(x[:, start:end])[0])


def test_padding_changes_nothing_and_stays_finite(layer):
    x = inputs(batch=1, length=30)
    documents = torch.zeros(1, 39, dtype=torch.int32)
    documents[:, 30:] = -1
    padded = torch.cat([x, 100 * torch.ones(1, 9, 64)], 1).requires_grad_()
    y = layer(padded, documents)[0]
    close(y[:, :30], layer(x)[0])
    y[:, :30].sum().backward()
    assert torch.isfinite(y).all()
    assert torch.isfinite(padded.grad).all()
    assert padded.grad[:, 30:].abs().max() == 0


def test_a_row_is_the_same_whatever_its_neighbours(layer):
    x = inputs(batch=3)
    close(layer(x)[0][1:2], layer(x[1:2])[0])


def test_restoring_a_snapshot_forgets_what_came_after(layer):
    state = new_state(layer, 2)
    if state is None:
        pytest.skip("this kind remembers nothing")
    x = inputs()
    layer(x[:, :10], None, state)
    mark = state.snapshot()
    layer(x[:, 10:15] + 3, None, state)
    state.restore(mark)
    y = layer(x[:, 10:], None, state)[0]
    close(y, layer(x)[0][:, 10:])
    state.restore(mark)  # a mark serves any number of times
    close(layer(x[:, 10:], None, state)[0], y, 0.0)


def test_rows_are_selected_repeated_and_joined(layer):
    state = new_state(layer, 3)
    if state is None:
        pytest.skip("this kind remembers nothing")
    x = inputs(batch=3)
    full = layer(x)[0]
    layer(x[:, :10], None, state)
    state.select(torch.tensor([2, 0, 2]))
    close(layer(x[[2, 0, 2], 10:12], None, state)[0], full[[2, 0, 2], 10:12])
    longer = new_state(layer, 1)
    layer(x[1:2, :20], None, longer)
    state.join([longer])
    rows = torch.stack([x[2, 12], x[0, 12], x[2, 12], x[1, 20]])[:, None]
    expected = torch.stack([full[2, 12], full[0, 12], full[2, 12], full[1, 20]])[:, None]
    close(layer(rows, None, state)[0], expected)


def test_state_bytes_count_what_is_remembered(kind, layer):
    state = new_state(layer, 2)
    if state is None:
        pytest.skip("this kind remembers nothing")
    layer(inputs(), None, state)
    letter, _ = kind
    per_row = 4 * 8 * 16 * 16 + 4 * 3 * (128 + 64) if letter == "M" else 39 * 2 * 2 * 16 * 4
    assert state.nbytes == 2 * per_row


def test_one_batch_can_be_overfitted(layer):
    x = inputs(batch=1, length=12)
    target = inputs(batch=1, length=12, seed=9)
    optimizer = torch.optim.Adam(layer.train().parameters(), lr=1e-2)
    losses = []
    for _ in range(60):
        loss = (layer(x)[0] - x - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_every_parameter_gets_a_gradient(layer):
    layer.train()
    y, routing = layer(inputs())
    (y.square().sum() + (routing.balance if routing else 0)).backward()
    assert not [name for name, p in layer.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]


def test_same_seed_same_bits(kind):
    letter, variant = kind

    def build():
        torch.manual_seed(5)
        layer = make_layer(letter, CONFIGS[variant])
        initialise(layer, 0.02, 7)
        return layer

    one, two = build(), build()
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True))
    assert torch.equal(one(inputs())[0], two(inputs())[0])


def test_a_copy_is_independent(layer):
    twin = copy.deepcopy(layer)
    with torch.no_grad():
        next(twin.parameters()).add_(1)
    assert not torch.equal(layer(inputs())[0], twin(inputs())[0])


def test_bf16_stays_near_fp32(kind, layer):
    if kind[0] == "E":
        pytest.skip("routing may flip in bf16; compared with replayed routing at model level")
    exact = layer(inputs())[0]
    for module in layer.modules():
        if hasattr(module, "format"):
            module.format = "bf16"
    rough = layer(inputs().bfloat16())[0].float()
    assert (rough - exact).norm() / exact.norm() < 3e-2


def test_model_of_any_pattern_remembers_only_where_it_should():
    model = make("mtp")
    assert [state is not None for state in model.new_states(1)] == [letter in "M*" for letter in "MEM*EME"]
    assert isinstance(model, HybridLM)
