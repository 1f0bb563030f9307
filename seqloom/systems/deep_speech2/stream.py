"""Recognition of sound that is still coming: pieces of any size in, text so far out.

    listen = StreamingModel(load("runs/an4_streaming"))
    stream = Stream(listen, Listener(Greedy(listen.symbols), listen))
    for samples in microphone: print(stream.accept(samples))
    print(stream.finish().text)

The layers are those of `model.DeepSpeech2`; only what each one remembers is in sight here. Steps of all streams lie one
below the other, [B T] without padding, since nothing but a recurrent layer cares which stream a step belongs to, and
every product gives a row the same bits among any neighbours. So neither the size of the pieces nor the company of other
streams changes an answer. (To the last bit in FP32 on a CPU with the native kernels; elsewhere to rounding.) `model`
itself multiplies whole utterances in whatever order is fastest, and agrees to rounding. Deep Speech 2, section 7.
"""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from seqloom.core.errors import ConfigError
from seqloom.data.audio import RATE
from seqloom.nn.recurrent import Recurrent
from seqloom.nn.sequence_norm import SequenceNorm
from seqloom.nn.state import LayerState
from seqloom.ops.kernels import chosen
from seqloom.ops.linear import linear_in_blocks, linear_torch
from seqloom.ops.native.matvec import matvec
from seqloom.ops.recurrence import gru, rnn
from seqloom.systems.deep_speech2.beam_search import Hypothesis
from seqloom.systems.deep_speech2.config import DeepSpeech2Config
from seqloom.systems.deep_speech2.endpoint import Endpoint, EndpointConfig
from seqloom.systems.deep_speech2.features import HOP, HOP_SECONDS, WINDOW, Heard, log_spectrogram
from seqloom.systems.deep_speech2.model import Connected, Convolution, DeepSpeech2
from seqloom.systems.deep_speech2.stream_state import Hidden, PerStream, StreamState, Window, slide
from seqloom.systems.deep_speech2.transcript import Segment, Transcript, segment

RECIPE = "deep_speech2/an4_streaming"
"""One whose model can stream."""
_LEAST_FRAMES = 16  # torch multiplies fewer rows than this in another order


def refuse_unless_streaming(config: DeepSpeech2Config) -> None:
    """
    Raises:
        ConfigError: the model needs the whole utterance; says why, and which recipe does not.
    """
    if obstacle := config.obstacle_to_streaming():
        raise ConfigError(f"{obstacle}; a recipe that can: {RECIPE}")


class StreamingModel:
    """A trained model, ready for streams.

    Args:
        model: one that hears the past only, with its alphabet; set to evaluation mode.
    Raises:
        ConfigError: it cannot stream.
    """

    def __init__(self, model: DeepSpeech2) -> None:
        refuse_unless_streaming(model.config)
        assert model.alphabet is not None
        self.model = model.eval()
        self.config = model.config
        self.symbols: tuple[str, ...] = model.alphabet.symbols
        self.step_seconds = HOP_SECONDS * model.config.time_stride
        self.device = model.head.weight.device
        self._convs = [_Convolution(layer) for layer in model.conv if isinstance(layer, Convolution)]

    def begin(self) -> StreamState:
        """The memory of one stream before its first sample."""
        model, config = self.model, self.config
        nothing = torch.zeros(0, device=self.device)
        sums = torch.zeros(1, config.features.bins, dtype=torch.float64, device=self.device)
        layers: list[LayerState] = [PerStream([Window(nothing)]), PerStream([Heard(0, sums, sums)])]
        channels, height = (1, config.features.bins) if config.convolution == "2d" else (config.features.bins, 1)
        for conv in self._convs:
            layers.append(PerStream([Window(nothing.new_zeros(conv.size // 2, channels, height))]))
            channels, height = conv.channels, (height - 1) // conv.hop + 1
        width = config.recurrent.width
        layers += [Hidden(nothing.new_zeros(1, width)) for _ in model.recurrent]
        if model.row is not None:
            layers.append(PerStream([Window(nothing.new_zeros(0, width))]))
        return StreamState(layers)

    @torch.inference_mode()
    def hear(
        self, state: StreamState, samples: Sequence[Float[Tensor, "_"]], last: Sequence[bool]
    ) -> list[Float[Tensor, "_ V"]]:
        """Log-probabilities of the steps that further samples decide, of every stream; on the CPU.

        Args:
            state: of the streams; moved on.
            samples: new ones of each stream, at 16 kHz; perhaps none.
            last: of each stream, whether these end it.
        """
        model, layers = self.model, iter(state.layers)
        x, counts = self._features(next(layers), next(layers), samples)
        x = x[:, None] if self.config.convolution == "2d" else x[:, :, None]
        for conv in self._convs:
            x, counts = conv(next(layers), x, counts, last)
        x = x.flatten(1)
        for layer in model.recurrent:
            assert isinstance(layer, Recurrent)
            x = _recur(layer, next(layers), x, counts)
        if model.row is not None:
            x, counts = self._look_ahead(next(layers), x, counts, last)
        for layer in model.connected:
            assert isinstance(layer, Connected)
            x = _connect(layer, x)
        logits = _product(x, model.head.weight) + model.head.bias
        return list(logits.log_softmax(-1).cpu().split(counts))

    def _features(
        self, sound: PerStream[Window], heard: PerStream[Heard], samples: Sequence[Tensor]
    ) -> tuple[Float[Tensor, "S M"], list[int]]:
        """Normalised frames."""
        normaliser, frames = self.model.normaliser, []
        for row, new in enumerate(samples):
            inputs, count, sound.values[row] = slide(sound.values[row], new.to(self.device), WINDOW, HOP)
            room = (max(count, _LEAST_FRAMES) - 1) * HOP + WINDOW
            inputs = F.pad(inputs, (0, max(0, room - len(inputs))))[:room]
            features = log_spectrogram(inputs, self.config.features.bins)[None, :, :count]
            if normaliser.kind == "adaptive":
                features, heard.values[row] = normaliser.continued(features, heard.values[row])
            else:
                features = normaliser(features, torch.tensor([count], device=self.device))
            frames.append(features[0].T)
        return torch.cat(frames), [len(each) for each in frames]

    def _look_ahead(
        self, windows: PerStream[Window], x: Float[Tensor, "S H"], counts: list[int], last: Sequence[bool]
    ) -> tuple[Float[Tensor, "R H"], list[int]]:
        """The row convolution, over all streams as if they were one; steps that see two of them are left out."""
        row = self.model.row
        assert row is not None
        context = row.context
        inputs, counts = _slide_all(windows, x.split(counts), context + 1, 1, context, last)
        together = torch.cat([*inputs, x.new_zeros(context, x.shape[1])])
        y = row.known(together[None])[0].clamp(0, self.config.clip)
        starts = [len(each) for each in inputs]
        return torch.cat([each[:count] for each, count in zip(y.split(starts), counts, strict=True)]), counts


class _Convolution:
    """One convolution over what slides past: its windows as rows of a matrix, times the weights."""

    def __init__(self, layer: Convolution) -> None:
        conv = layer.conv
        self._norm, self._clip, self._bias = layer.norm, layer.clip, conv.bias
        (self._height, self.size), (self.hop, self._stride) = conv.kernel_size, conv.stride
        self.channels = conv.out_channels
        # frames outermost, so that what lies side by side in memory is side by side in a row
        self._weight = conv.weight.detach().permute(0, 3, 1, 2).flatten(1).contiguous()

    def __call__(
        self, windows: PerStream[Window], x: Float[Tensor, "S C M"], counts: list[int], last: Sequence[bool]
    ) -> tuple[Float[Tensor, "R E N"], list[int]]:
        inputs, counts = _slide_all(windows, x.split(counts), self.size, self._stride, self.size // 2, last)
        rows = [self._rows(each) for each, count in zip(inputs, counts, strict=True) if count]
        height = (x.shape[2] - 1) // self.hop + 1
        if not rows:
            return x.new_zeros(0, self.channels, height), counts
        y = _product_of_many(torch.cat(rows), self._weight).view(-1, height, self.channels).transpose(1, 2)
        y = _normalised(self._norm, y, None if self._bias is None else self._bias[:, None])
        return y.clamp(0, self._clip), counts

    def _rows(self, inputs: Float[Tensor, "S C M"]) -> Float[Tensor, "R K"]:
        around = F.pad(inputs, (self._height // 2, self._height // 2))
        places = around.unfold(0, self.size, self._stride).unfold(2, self._height, self.hop)  # T C N size height
        return places.permute(0, 2, 3, 1, 4).flatten(0, 1).flatten(1)


def _slide_all(
    windows: PerStream[Window],
    new: Sequence[Tensor],
    size: int,
    stride: int,
    zeros_after: int,
    last: Sequence[bool],
) -> tuple[list[Tensor], list[int]]:
    """`slide` for every stream: inputs from its next place on, and how many places lie in them."""
    inputs, counts = [], []
    for row, (more, ends) in enumerate(zip(new, last, strict=True)):
        found, count, windows.values[row] = slide(windows.values[row], more, size, stride, zeros_after if ends else 0)
        inputs.append(found)
        counts.append(count)
    return inputs, counts


def _recur(layer: Recurrent, hidden: Hidden, x: Float[Tensor, "S D"], counts: list[int]) -> Float[Tensor, "S H"]:
    if layer.input_norm is not None:
        x = _normalised(layer.input_norm, x, None)
    term = _product(x, layer.input.weight)
    term = _normalised(layer.norm, term, layer.bias)
    if not len(x):
        return x.new_zeros(0, layer.recurrent.shape[1])
    terms = pad_sequence(list(term.split(counts)), batch_first=True)
    lengths = torch.tensor(counts, device=x.device)
    if layer.kind == "rnn":
        y = rnn(terms, layer.recurrent, lengths, hidden.values, limit=layer.clip)
    else:
        y = gru(terms, layer.recurrent, lengths, hidden.values, candidate=layer.candidate)
    ends = y[torch.arange(len(counts), device=x.device), (lengths - 1).clamp(min=0)]
    hidden.values = torch.where(lengths[:, None] > 0, ends, hidden.values)
    return torch.cat([row[:count] for row, count in zip(y, counts, strict=True)])


def _connect(layer: Connected, x: Float[Tensor, "S D"]) -> Float[Tensor, "S F"]:
    term = _product(x, layer.linear.weight)
    term = _normalised(layer.norm, term, layer.bias)
    return term.clamp(0, layer.clip)


def _normalised(norm: SequenceNorm | None, x: Tensor, bias: Tensor | None) -> Tensor:
    """B(x) with running statistics, which leave no step out; a layer without has a bias."""
    if norm is not None:
        return norm(x, x.new_ones(1))
    assert bias is not None
    return x + bias


def _product(x: Float[Tensor, "S I"], weight: Float[Tensor, "O I"]) -> Float[Tensor, "S O"]:
    """x Wᵀ for a few steps, each row with the same bits among any others."""
    if chosen("linear", x.device, x.dtype, x, weight) == "native":
        return matvec(x, weight)
    return linear_torch(x, weight)


def _product_of_many(x: Float[Tensor, "R I"], weight: Float[Tensor, "O I"]) -> Float[Tensor, "R O"]:
    """The same for the windows of a convolution, which are many against few weights."""
    if chosen("linear", x.device, x.dtype, x, weight) == "native":
        return linear_in_blocks(x, weight)
    return linear_torch(x, weight)


@runtime_checkable
class Searches(Protocol):
    """What `greedy.Greedy` and `beam_search.Decoder` have in common."""

    def reset(self) -> None: ...

    def accept(self, log_probs: Float[Tensor, "T V"]) -> None: ...

    def result(self, best: int = 1) -> list[Hypothesis]: ...


class Listener:
    """The end of one stream where words come out: decoder, and where utterances end.

    Args:
        rules: None if the whole stream is one utterance.
    """

    def __init__(self, decoder: Searches, model: StreamingModel, rules: EndpointConfig | None = None) -> None:
        self._decoder, self._symbols, self._step = decoder, model.symbols, model.step_seconds
        self._endpoint = None if rules is None else Endpoint(rules, self._step, self._symbols)
        self._heard: list[Float[Tensor, "T V"]] = []
        self._begun = self._steps = 0

    def accept(self, log_probs: Float[Tensor, "T V"]) -> list[Segment]:
        """The utterances that further steps complete.

        Raises:
            DataError: the model gave something that is not a number.
        """
        finished = []
        while self._endpoint is not None and (count := self._endpoint.find(log_probs)) is not None:
            self._take(log_probs[:count])
            finished += self.finish()
            log_probs = log_probs[count:]
        self._take(log_probs)
        return finished

    def finish(self) -> list[Segment]:
        """The utterance that is under way, if it has words, as if it were over; a new one begins."""
        best = self._decoder.result(1)
        found = []
        if best and best[0].text:
            found.append(segment(torch.cat(self._heard), best, self._symbols, self._step, self._begun * self._step))
        self._decoder.reset()
        if self._endpoint is not None:
            self._endpoint.reset()
        self._heard, self._begun = [], self._steps
        return found

    @property
    def partial(self) -> str:
        """The text of the utterance so far."""
        best = self._decoder.result(1)
        return best[0].text if best else ""

    def _take(self, log_probs: Float[Tensor, "T V"]) -> None:
        if len(log_probs):
            self._decoder.accept(log_probs)
            self._heard.append(log_probs)
            self._steps += len(log_probs)


class Stream:
    """One stream by itself, without a server."""

    def __init__(self, model: StreamingModel, listener: Listener) -> None:
        self._model, self._listener = model, listener
        self._state = model.begin()
        self._samples = 0
        self._segments: list[Segment] = []

    def accept(self, samples: Float[Tensor, "N"]) -> str:
        """Text so far, which later samples may still change.

        Args:
            samples: mono, at 16 kHz, between -1 and 1.
        """
        self._hear(samples, last=False)
        return " ".join(text for text in (*(one.text for one in self._segments), self._listener.partial) if text)

    def finish(self) -> Transcript:
        """The words, with their times; nothing may follow."""
        self._hear(torch.zeros(0), last=True)
        self._segments += self._listener.finish()
        return Transcript("stream", round(self._samples / RATE, 3), tuple(self._segments))

    def _hear(self, samples: Float[Tensor, "N"], *, last: bool) -> None:
        self._samples += len(samples)
        (log_probs,) = self._model.hear(self._state, [samples], [last])
        self._segments += self._listener.accept(log_probs)
