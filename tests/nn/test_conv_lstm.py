"""The convolutional LSTM against torch's LSTM, and its unrolls against single steps."""

import torch
from torch import Tensor, nn

from seqloom.nn.conv_lstm import ConvLSTM, ImageState


def zeros(batch: int, channels: int, rows: int, columns: int) -> ImageState:
    return torch.zeros(batch, channels, rows, columns), torch.zeros(batch, channels, rows, columns)


def test_on_images_of_one_pixel_it_is_torchs_lstm() -> None:
    torch.manual_seed(0)
    ours, theirs = ConvLSTM(5, 4), nn.LSTM(5, 4)
    order = torch.tensor([0, 1, 3, 2])  # torch keeps the gates as i, f, g, o
    with torch.no_grad():
        for name, layer in (("ih", ours.input), ("hh", ours.recurrent)):
            middle = layer.weight[:, :, 1, 1].unflatten(0, (4, 4))
            getattr(theirs, f"weight_{name}_l0").copy_(middle[order].flatten(0, 1))
        assert ours.input.bias is not None
        theirs.bias_ih_l0.copy_(ours.input.bias.unflatten(0, (4, 4))[order].flatten())
        theirs.bias_hh_l0.zero_()
    inputs = torch.randn(6, 3, 5)
    expected, (h, c) = theirs(inputs)
    outputs, state = ours(inputs[..., None, None], torch.zeros(6, 3, dtype=torch.bool), zeros(3, 4, 1, 1))
    torch.testing.assert_close(outputs[..., 0, 0], expected)
    torch.testing.assert_close([part[..., 0, 0] for part in state], [h[0], c[0]])


def test_fresh_weights_remember() -> None:
    layer = ConvLSTM(2, 3)
    assert layer.input.bias is not None
    assert layer.input.bias[3:6].tolist() == [1.0, 1.0, 1.0]


def test_an_unroll_is_its_steps_and_forgets_where_an_episode_begins() -> None:
    torch.manual_seed(0)
    layer, inputs = ConvLSTM(2, 3), torch.randn(5, 2, 2, 4, 3)
    begins = torch.zeros(5, 2, dtype=torch.bool)
    begins[2, 1] = True
    state: tuple[Tensor, Tensor] = torch.randn(2, 3, 4, 3), torch.randn(2, 3, 4, 3)
    whole, last = layer(inputs, begins, state)
    for t in range(5):
        step, state = layer(inputs[t : t + 1], begins[t : t + 1], state)
        torch.testing.assert_close(step[0], whole[t])
    torch.testing.assert_close(state, last)
    fresh, _ = layer(inputs[2:, 1:], begins[3:4].expand(3, -1)[:, 1:], zeros(1, 3, 4, 3))
    torch.testing.assert_close(fresh, whole[2:, 1:])
