"""Recurrent layers and their normalisation against torch's own, and what must hold whatever they compute."""

import itertools

import pytest
import torch
from torch import nn

from seqloom.nn.recurrent import Recurrent
from seqloom.nn.row_conv import RowConv
from seqloom.nn.sequence_norm import SequenceNorm

LENGTHS = torch.tensor([9, 4, 7])
VALID = (torch.arange(9) < LENGTHS[:, None]).float()[..., None]
CASES = [
    (kind, directions, inputs, norm)
    for kind, directions, norm in itertools.product(
        ["rnn", "gru"], ["forward", "sum", "concat"], ["batch", "input", "none"]
    )
    for inputs in ["shared", "separate"]
    if directions != "forward" or inputs == "shared"
]


def inputs(seed=0):
    return torch.randn(3, 9, 5, generator=torch.Generator().manual_seed(seed)) * VALID


def make(*case):
    torch.manual_seed(1)
    return Recurrent(5, 6, *case)


def test_sequence_norm_is_torchs_over_all_valid_steps():
    ours, theirs = SequenceNorm(5, momentum=0.3), nn.BatchNorm1d(5, momentum=0.3)
    with torch.no_grad():
        for module in (ours, theirs):
            module.weight.copy_(torch.linspace(0.5, 2, 5))
            module.bias.copy_(torch.linspace(-1, 1, 5))
    x = (inputs() * 3 + 1).requires_grad_()
    places = VALID[..., 0].bool()
    y, expected = ours(x, VALID)[places], theirs(x[places])
    torch.testing.assert_close(y, expected)
    weights = torch.randn(expected.shape)
    mine = torch.autograd.grad((y * weights).sum(), [x, ours.weight, ours.bias])
    other = torch.autograd.grad((expected * weights).sum(), [x, theirs.weight, theirs.bias])
    torch.testing.assert_close(mine, other)
    torch.testing.assert_close(ours.running_mean, theirs.running_mean)
    torch.testing.assert_close(ours.running_variance, theirs.running_var)
    torch.testing.assert_close(ours.eval()(x, VALID)[places], theirs.eval()(x[places]))


def test_sequence_norm_of_images_sums_over_frequencies_too():
    x = torch.randn(3, 4, 6, 9)
    ours, theirs = SequenceNorm(4, axis=1), nn.BatchNorm2d(4)
    torch.testing.assert_close(ours(x, torch.ones(3, 1, 1, 9)), theirs(x))


def test_an_overflow_does_not_reach_the_running_statistics():
    norm = SequenceNorm(5)
    norm(torch.full((3, 9, 5), torch.inf), VALID)
    assert norm.running_mean.isfinite().all()
    assert norm.running_variance.isfinite().all()


def test_rnn_without_norm_is_torchs_relu_rnn():
    layer, theirs = make("rnn", "concat", "separate", "none"), nn.RNN(5, 6, nonlinearity="relu", bidirectional=True)
    weights = layer.input.weight.chunk(2)
    with torch.no_grad():
        for suffix, weight, matrix in zip(
            ("", "_reverse"), weights, (layer.recurrent, layer.recurrent_back), strict=True
        ):
            getattr(theirs, f"weight_ih_l0{suffix}").copy_(weight)
            getattr(theirs, f"weight_hh_l0{suffix}").copy_(matrix)
            getattr(theirs, f"bias_ih_l0{suffix}").zero_()
            getattr(theirs, f"bias_hh_l0{suffix}").zero_()
    x = inputs()
    packed = nn.utils.rnn.pack_padded_sequence(x, LENGTHS, batch_first=True, enforce_sorted=False)
    expected, _ = nn.utils.rnn.pad_packed_sequence(theirs(packed)[0], batch_first=True)
    torch.testing.assert_close(layer(x, LENGTHS, VALID), expected)


@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_padding_and_neighbours_change_nothing_and_all_parameters_learn(case):
    layer = make(*case)
    x = inputs()
    y = layer(x, LENGTHS, VALID)
    assert y.shape == (3, 9, layer.out_width)
    assert not (y * (1 - VALID)).any()
    y.square().sum().backward()
    assert not [name for name, p in layer.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    layer.eval()
    alone = layer(x[1:2, :4], LENGTHS[1:2], VALID[1:2, :4])
    torch.testing.assert_close(layer(x, LENGTHS, VALID)[1:2, :4], alone)


def test_shared_inputs_use_one_matrix_and_hear_both_ways():
    shared, separate = make("rnn", "sum", "shared", "batch"), make("rnn", "sum", "separate", "batch")
    assert 2 * shared.input.weight.numel() == separate.input.weight.numel()
    shared.eval()
    x = inputs()
    changed = x.clone()
    changed[0, 5] += 1
    moved = (shared(x, LENGTHS, VALID) - shared(changed, LENGTHS, VALID))[0].abs().sum(-1)
    assert moved[2] > 0
    assert moved[7] > 0


@pytest.mark.parametrize("kind", ["rnn", "gru"])
def test_a_forward_layer_goes_on_from_its_last_state(kind):
    layer = make(kind, "forward").eval()
    x, ones = torch.randn(2, 8, 5), torch.ones(2, 8, 1)
    whole = layer(x, torch.tensor([8, 8]), ones)
    first = layer(x[:, :3], torch.tensor([3, 3]), ones[:, :3])
    second = layer(x[:, 3:], torch.tensor([5, 5]), ones[:, 3:], first[:, -1])
    torch.testing.assert_close(torch.cat([first, second], 1), whole)


def test_row_convolution_is_torchs_with_right_context_and_streams():
    row = RowConv(5, 3)
    x = torch.randn(2, 9, 5)
    torch.testing.assert_close(row(x), x)
    torch.nn.init.normal_(row.weight)
    padded = torch.nn.functional.pad(x, (0, 0, 0, 3)).transpose(1, 2)
    expected = torch.nn.functional.conv1d(padded, row.weight[:, None], groups=5).transpose(1, 2)
    torch.testing.assert_close(row(x), expected)
    torch.testing.assert_close(row.known(x), expected[:, :6])
