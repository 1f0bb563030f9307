"""Shapes of a speech recogniser, its data and task, and the run that joins them.

Deep Speech 2, section 3: convolutions over a spectrogram, recurrent layers with sequence-wise batch normalization, a
row convolution where no future is heard, fully connected layers, and a softmax over characters and the blank.
"""

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from seqloom.core.config import Ge, Gt, Interval, MinLen, config
from seqloom.core.errors import ConfigError
from seqloom.core.progress import Progress
from seqloom.data.config import SourceConfig
from seqloom.train.run import Run as BaseRun

if TYPE_CHECKING:
    import torch

    from seqloom.systems.deep_speech2.model import DeepSpeech2
    from seqloom.systems.deep_speech2.task import SpeechTask

MODEL_TYPES = ("seqloom_deep_speech2",)

LETTERS = "synthetic:letters"
"""The built-in corpus, which needs nothing installed (see `synth.py`)."""

Normalisation = Literal["global", "utterance", "adaptive"]
Norm = Literal["batch", "input", "none"]
Units = Literal["characters", "bigrams", "found"]


@config
class FeatureConfig:
    """The spectrogram that the model hears."""

    bins: Annotated[int, Interval(ge=1, le=161)] = 161
    """Frequency bins: 161 is the whole spectrum in steps of 50 Hz; fewer are summed as the ear does."""
    normalisation: Normalisation = "global"
    """By bin: with the statistics of the training set, of each utterance, or of what was heard so far (streaming)."""
    power_normalisation: bool = True
    """Bring every clip to -20 dBFS first; a stream cannot know how loud it will be, so streaming models go without."""

    def __post_init__(self) -> None:
        if self.bins in (159, 160):
            raise ConfigError(f"model.features.bins: {self.bins} is no smaller spectrum; use 161, or at most 158")


@config
class ConvConfig:
    """One convolution over frequency and time, "same" padding."""

    channels: Annotated[int, Ge(1)]
    kernel: tuple[Annotated[int, Ge(1)], Annotated[int, Ge(1)]]
    """Frequency bins and frames, both odd; frequency is 1 in one dimension."""
    stride: tuple[Annotated[int, Ge(1)], Annotated[int, Ge(1)]] = (1, 1)
    """Frequency, time."""


@config
class RecurrentConfig:
    """The recurrent layers."""

    kind: Literal["rnn", "gru"] = "rnn"
    layers: Annotated[int, Ge(1)] = 7
    width: Annotated[int, Ge(1)] = 1280
    directions: Literal["forward", "sum", "concat"] = "sum"
    """"forward" hears the past only; two directions are summed (the paper) or put side by side."""
    inputs: Literal["shared", "separate"] = "shared"
    """Of two directions: one input matrix W for both, as the published sizes imply, or one each."""
    candidate: Literal["tanh", "clipped_relu"] = "tanh"
    """What a GRU's new content goes through."""


@config
class DeepSpeech2Config:
    """A speech recogniser: spectrogram -> one distribution over characters and the blank for every few frames."""

    vocab_size: Annotated[int, Ge(2)] = 29
    """Outputs, the blank among them; 29 are the letters, the apostrophe and the space."""
    features: FeatureConfig = FeatureConfig()
    convolution: Literal["1d", "2d"] = "2d"
    """Over time with all bins as channels, or over frequency and time."""
    conv: Annotated[tuple[ConvConfig, ...], MinLen(1)] = (
        ConvConfig(channels=32, kernel=(41, 11), stride=(2, 2)),
        ConvConfig(channels=32, kernel=(21, 11), stride=(2, 1)),
    )
    recurrent: RecurrentConfig = RecurrentConfig()
    row_context: Annotated[int, Ge(1)] | None = None
    """τ: later steps that the row convolution looks at; only for models that hear the past only."""
    connected: tuple[Annotated[int, Ge(1)], ...] = ()
    """Widths of fully connected layers before the output."""
    norm: Norm = "batch"
    """Sequence-wise batch normalization of W x (the paper), of a recurrent layer's input, or none anywhere."""
    norm_momentum: Annotated[float, Interval(gt=0, le=1)] = 0.1
    """Share of a minibatch in the running statistics that inference uses."""
    clip: Annotated[float, Gt(0)] = 20.0
    """Upper end of the clipped ReLU min(max(x, 0), clip)."""

    def __post_init__(self) -> None:
        for index, layer in enumerate(self.conv):
            if not all(size % 2 for size in layer.kernel):
                raise ConfigError(
                    f"model.conv.{index}.kernel: {layer.kernel} cannot be centred; use odd numbers, for instance "
                    f"({layer.kernel[0] | 1}, {layer.kernel[1] | 1})"
                )
            if self.convolution == "1d" and (layer.kernel[0], layer.stride[0]) != (1, 1):
                raise ConfigError(
                    f"model.conv.{index}: a convolution in one dimension takes all bins as channels, so the first "
                    f"number of kernel and stride is 1, not {layer.kernel[0]} and {layer.stride[0]}"
                )
        if self.row_context is not None and self.recurrent.directions != "forward":
            raise ConfigError(
                "model.row_context: a model of two directions hears the future already; set "
                "model.recurrent.directions to forward, or leave the row convolution out"
            )

    def output_length(self, frames: int) -> int:
        """Steps that the model gives for so many frames: ⌊(T - 1) / s⌋ + 1 for every convolution of time stride s."""
        for layer in self.conv:
            frames = (frames - 1) // layer.stride[1] + 1 if frames > 0 else 0
        return frames

    @property
    def front_width(self) -> int:
        """Values of a step behind the convolutions: channels × frequencies."""
        height = self.features.bins if self.convolution == "2d" else 1
        for layer in self.conv:
            height = (height - 1) // layer.stride[0] + 1
        return self.conv[-1].channels * height

    @property
    def time_stride(self) -> int:
        """Frames from one output to the next."""
        stride = 1
        for layer in self.conv:
            stride *= layer.stride[1]
        return stride

    def obstacle_to_streaming(self) -> str | None:
        """Which setting keeps the model from following speech as it comes, and why; None if nothing does."""
        if self.recurrent.directions != "forward":
            directions = self.recurrent.directions
            return f"model.recurrent.directions: '{directions}' cannot stream, since it hears the future"
        if self.features.normalisation == "utterance":
            return "model.features.normalisation: 'utterance' cannot stream, since it needs the whole utterance first"
        if self.features.power_normalisation:
            setting = "model.features.power_normalisation: 'True'"
            return f"{setting} cannot stream, since how loud a stream will be is not known yet"
        return None

    def build(self) -> "DeepSpeech2":
        """A model with fresh weights from torch's global generator."""
        from seqloom.systems.deep_speech2.model import DeepSpeech2

        return DeepSpeech2(self)

    def training_bytes(self, run: "Run") -> int:
        """Estimated peak of all tensors of a training, in bytes."""
        from seqloom.systems.deep_speech2.budget import training_bytes

        return training_bytes(run)


@config
class SpeechDataConfig:
    """Recordings with their words."""

    sources: tuple[SourceConfig, ...]
    """Each a folder with an index.tsv, that file, JSON lines with "audio" (or "audio_filepath") and "text",
    "synthetic:letters", or "synthetic:espeak:TEXT_FILE". "#NAME" at the end takes the split of that name; an index with
    a column "split" gives its "train" otherwise."""
    units: Units = "characters"
    """What the outputs stand for: letters, pairs of letters inside words, or whatever characters the texts hold."""
    text: Literal["english", "as_it_is"] = "english"
    """"english" lowers letters, spells numbers and drops punctuation."""
    valid_fraction: Annotated[float, Interval(gt=0, lt=0.5)] = 0.1
    """Share held back for evaluation: of the speakers where they are known, else of the utterances."""
    min_seconds: Annotated[float, Ge(0.1)] = 0.2
    max_seconds: Annotated[float, Gt(0)] = 20.0
    """Longer and shorter recordings are left out, and counted."""
    bad_file_limit: Annotated[int, Ge(0)] = 100
    """Unreadable recordings tolerated (each is counted and the first ones are named) before the run is refused."""

    def __post_init__(self) -> None:
        if not self.sources:
            raise ConfigError("task.data.sources: name at least one source, e.g. --data my_recordings/")
        for source in self.sources:
            if source.weight != 1:
                raise ConfigError(
                    f"task.data.sources: weight {source.weight} of {source.path}; every utterance is heard once an "
                    "epoch here, so leave the weight out"
                )
        if self.min_seconds >= self.max_seconds:
            raise ConfigError(f"task.data.min_seconds: {self.min_seconds} is not below max_seconds {self.max_seconds}")


@config
class AugmentConfig:
    """What is done to training recordings, anew in every epoch."""

    noise_fraction: Annotated[float, Interval(ge=0, le=1)] = 0.4
    """Share of the utterances that noise is added to."""
    noise: Annotated[str, MinLen(1)] = "built-in"
    """A folder of recordings of noise, or "built-in": white, pink, and babble of other training utterances."""
    snr_db: tuple[float, float] = (0.0, 30.0)
    """Lowest and highest ratio of speech to noise, drawn evenly in decibels."""
    speed: Annotated[float, Interval(ge=0, le=0.3)] = 0.0
    """Play faster or slower by up to this share, pitch included."""
    gain_db: Annotated[float, Interval(ge=0, le=40)] = 0.0
    """Louder or softer by up to this."""
    shift_ms: Annotated[float, Interval(ge=0, le=10)] = 0.0
    """Earlier or later by up to this; what moves out at one end is lost."""

    def __post_init__(self) -> None:
        if self.snr_db[0] > self.snr_db[1]:
            raise ConfigError(f"task.augment.snr_db: {self.snr_db} is not (lowest, highest)")


@config
class SpeechTaskConfig:
    """Transcription learned with CTC."""

    memory_settings: ClassVar[tuple[str, ...]] = ("task.batch_rows", "task.micro_rows", "task.data.max_seconds")

    data: SpeechDataConfig
    augment: AugmentConfig = AugmentConfig()
    batch_rows: Annotated[int, Ge(1)] = 16
    """Utterances per optimizer step."""
    micro_rows: Annotated[int, Ge(1)] | None = None
    """Utterances per forward pass; only without batch normalization, whose statistics are those of the whole batch."""
    sorta_grad: bool = True
    """Short utterances first in the first epoch (SortaGrad); later ones take minibatches in random order."""
    evaluate_rows: Annotated[int, Ge(1)] = 256
    """Most held-out utterances per evaluation."""

    def __post_init__(self) -> None:
        if self.micro_rows is not None and self.batch_rows % self.micro_rows:
            raise ConfigError(f"task.micro_rows: {self.micro_rows} does not divide batch_rows = {self.batch_rows}")

    def build(self, run: "Run", device: "torch.device", progress: Progress | None = None) -> "SpeechTask":
        """Prepare or open the recordings; raises DataError before anything is allocated."""
        from seqloom.systems.deep_speech2.task import SpeechTask

        return SpeechTask(run, device, progress)


@config
class Run(BaseRun):
    """A training of a speech recogniser."""

    system: Literal["deep_speech2"] = "deep_speech2"
    name: str = "custom"
    model: DeepSpeech2Config
    task: SpeechTaskConfig

    def __post_init__(self) -> None:
        if self.task.micro_rows is not None and self.model.norm != "none":
            raise ConfigError(
                f"task.micro_rows: with model.norm '{self.model.norm}' the statistics are those of a whole batch, "
                "so it is one forward pass; lower task.batch_rows instead, or set model.norm to none"
            )
        if self.task.augment.gain_db and self.model.features.power_normalisation:
            raise ConfigError(
                f"task.augment.gain_db: {self.task.augment.gain_db} has no effect, since every clip is brought to the "
                "same level; leave it at 0, or set model.features.power_normalisation false"
            )
