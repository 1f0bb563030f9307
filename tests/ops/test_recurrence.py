"""Recurrent layers against torch's own modules, finite differences, and one form against the other."""

import pytest
import torch
from torch import Tensor

from seqloom.ops.recurrence import gru, gru_reference, gru_torch, rnn, rnn_reference, rnn_torch

LENGTHS = torch.tensor([6, 3, 0, 1])


def inputs(parts: int, T: int = 6, H: int = 3, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    torch.manual_seed(0)
    x, weight, initial = torch.randn(4, T, parts * H), torch.randn(parts * H, H), torch.randn(4, H)
    return [x.to(dtype), weight.to(dtype), initial.to(dtype)]


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(
    ("form", "reference", "parts", "options"),
    [
        (rnn_torch, rnn_reference, 1, {"limit": 2.0}),
        (gru_torch, gru_reference, 3, {"candidate": "tanh"}),
        (gru_torch, gru_reference, 3, {"candidate": "clipped_relu"}),
    ],
)
def test_the_portable_form_equals_the_reference(same, form, reference, parts, options, reverse):
    def call(function):
        return lambda x, u, start: function(x, u, LENGTHS, start, reverse=reverse, **options)

    same(call(form), call(reference), *inputs(parts), rtol=1e-12, atol=1e-12)
    x, weight, _ = inputs(parts)
    torch.testing.assert_close(
        form(x, weight, LENGTHS, reverse=reverse, **options),
        reference(x, weight, LENGTHS, x.new_zeros(4, 3), reverse=reverse, **options),
    )


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(("form", "parts"), [(rnn_reference, 1), (gru_reference, 3)])
def test_gradients_match_finite_differences(form, parts, reverse):
    x, weight, start = inputs(parts, T=3, H=2)
    leaves = [leaf.detach().requires_grad_() for leaf in (x[1:3], weight, start[1:3])]
    assert torch.autograd.gradcheck(lambda x, u, start: form(x, u, LENGTHS[1:3], start, reverse=reverse), leaves)


@pytest.mark.parametrize("reverse", [False, True])
def test_rnn_equals_torch(reverse):
    x, weight, _ = inputs(1)
    module = torch.nn.RNN(3, 3, nonlinearity="relu", bias=False, batch_first=True, bidirectional=True).double()
    for name in ("", "_reverse"):
        getattr(module, f"weight_ih_l0{name}").data = torch.eye(3, dtype=torch.float64)
        getattr(module, f"weight_hh_l0{name}").data = weight
    packed = torch.nn.utils.rnn.pack_padded_sequence(x[:2], LENGTHS[:2], batch_first=True)
    truth = torch.nn.utils.rnn.pad_packed_sequence(module(packed)[0], batch_first=True)[0][..., 3 * reverse :][..., :3]
    for form in (rnn, rnn_reference, rnn_torch):
        torch.testing.assert_close(form(x[:2], weight, LENGTHS[:2], reverse=reverse, limit=torch.inf), truth)


@pytest.mark.parametrize("reverse", [False, True])
def test_gru_equals_torch_whose_z_is_ours_from_one(reverse):
    x, weight, _ = inputs(3)
    module = torch.nn.GRU(9, 3, bias=False, batch_first=True, bidirectional=True).double()
    z, r, n = torch.eye(9, dtype=torch.float64).chunk(3)
    u_z, u_r, u_n = weight.chunk(3)
    for name in ("", "_reverse"):
        getattr(module, f"weight_ih_l0{name}").data = torch.cat([r, -z, n])
        getattr(module, f"weight_hh_l0{name}").data = torch.cat([u_r, -u_z, u_n])
    packed = torch.nn.utils.rnn.pack_padded_sequence(x[:2], LENGTHS[:2], batch_first=True)
    truth = torch.nn.utils.rnn.pad_packed_sequence(module(packed)[0], batch_first=True)[0][..., 3 * reverse :][..., :3]
    for form in (gru, gru_reference, gru_torch):
        torch.testing.assert_close(form(x[:2], weight, LENGTHS[:2], reverse=reverse), truth)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(("form", "parts"), [(rnn_reference, 1), (rnn_torch, 1), (gru_reference, 3), (gru_torch, 3)])
def test_padding_is_never_looked_at(form, parts, reverse):
    x, weight, start = inputs(parts)
    wild = x.clone()
    for row, length in enumerate(LENGTHS.tolist()):
        wild[row, length:] = torch.nan
    found = []
    for leaf in (x, wild):
        leaves = [t.detach().requires_grad_() for t in (leaf, weight, start)]
        y = form(leaves[0], leaves[1], LENGTHS, leaves[2], reverse=reverse)
        assert all((y[row, length:] == 0).all() for row, length in enumerate(LENGTHS.tolist()))
        found.append([y, *torch.autograd.grad(y.square().sum(), leaves)])
    assert all(map(torch.equal, *found))


def test_bf16_is_computed_in_fp32():
    for parts, forms in ((1, (rnn, rnn_torch, rnn_reference)), (3, (gru, gru_torch, gru_reference))):
        leaves = inputs(parts, dtype=torch.bfloat16)
        truth = forms[1](*(leaf.float() for leaf in leaves[:2]), LENGTHS, leaves[2].float()).bfloat16()
        for form in forms:
            torch.testing.assert_close(form(*leaves[:2], LENGTHS, leaves[2]), truth)
