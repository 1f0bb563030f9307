"""Complete runs by name; a variant calls its parent and replaces fields."""

from collections.abc import Callable
from dataclasses import replace

from seqloom.data.config import YOUR_DATA, SourceConfig
from seqloom.numerics.precision import PrecisionConfig
from seqloom.systems.deep_speech2.config import (
    LETTERS,
    AugmentConfig,
    ConvConfig,
    DeepSpeech2Config,
    FeatureConfig,
    RecurrentConfig,
    Run,
    SpeechDataConfig,
    SpeechTaskConfig,
)
from seqloom.train.config import OptimizerConfig, ScheduleConfig, TrainConfig


def tiny() -> Run:
    """0.2 M parameters on built-in synthetic speech: spells it in about two minutes on two cores."""
    model = DeepSpeech2Config(
        features=FeatureConfig(bins=64),
        conv=(ConvConfig(channels=8, kernel=(11, 11), stride=(2, 2)),),
        recurrent=RecurrentConfig(kind="gru", layers=2, width=96),
    )
    return Run(
        name="tiny",
        model=model,
        task=SpeechTaskConfig(
            data=SpeechDataConfig(sources=(SourceConfig(path=LETTERS),)), batch_rows=16, evaluate_rows=48
        ),
        train=TrainConfig(
            steps=240,
            optimizer=OptimizerConfig(lr=4e-3, beta2=0.99, weight_decay=0.01),
            schedule=ScheduleConfig(warmup_steps=20, decay_fraction=0.5),
            clip_norm=20.0,
            evaluate_every=60,
            save_every=120,
        ),
        precision=PrecisionConfig(activations="fp32"),  # small products and a long recurrence gain nothing from less
    )


def an4() -> Run:
    """Read speech in half an hour on two cores, --data AN4_FOLDER: 2D convolutions, three bidirectional GRUs."""
    run = tiny()
    model = replace(
        run.model,
        features=FeatureConfig(bins=80),
        conv=(
            ConvConfig(channels=16, kernel=(21, 11), stride=(2, 2)),
            ConvConfig(channels=16, kernel=(11, 11), stride=(2, 1)),
        ),
        recurrent=RecurrentConfig(kind="gru", layers=3, width=256),
    )
    task = replace(
        run.task,
        data=SpeechDataConfig(sources=(SourceConfig(path=YOUR_DATA),), max_seconds=8.0),
        augment=AugmentConfig(speed=0.12, shift_ms=5.0),
        evaluate_rows=128,
    )
    return replace(
        run,
        name="an4",
        model=model,
        task=task,
        train=replace(
            run.train,
            steps=3000,
            optimizer=OptimizerConfig(lr=1.5e-3, beta2=0.99, weight_decay=0.05),
            schedule=ScheduleConfig(warmup_steps=100, decay_fraction=0.6),
            evaluate_every=250,
            save_every=250,
        ),
    )


def an4_streaming() -> Run:
    """The same, heard as it comes: forward GRUs, a row convolution over the next 0.2 s, adaptive normalisation."""
    run = an4()
    model = replace(
        run.model,
        features=FeatureConfig(bins=80, normalisation="adaptive", power_normalisation=False),
        recurrent=RecurrentConfig(kind="gru", layers=3, width=320, directions="forward"),
        row_context=10,
    )
    task = replace(run.task, augment=replace(run.task.augment, gain_db=10.0))
    return replace(run, name="an4_streaming", model=model, task=task)


def english() -> Run:
    """The paper's best English model, for GPUs: three 2D convolutions, seven bidirectional RNNs, bigrams, 100 M."""
    model = DeepSpeech2Config(
        vocab_size=700,
        conv=(
            ConvConfig(channels=32, kernel=(41, 11), stride=(2, 3)),
            ConvConfig(channels=32, kernel=(21, 11), stride=(2, 1)),
            ConvConfig(channels=96, kernel=(21, 11), stride=(2, 1)),
        ),
        recurrent=RecurrentConfig(kind="rnn", layers=7, width=2160),
    )
    return Run(
        name="english",
        model=model,
        task=SpeechTaskConfig(
            data=SpeechDataConfig(
                sources=(SourceConfig(path=YOUR_DATA),), units="bigrams", valid_fraction=0.02, max_seconds=16.0
            ),
            batch_rows=64,
            evaluate_rows=1024,
        ),
        train=TrainConfig(
            steps=100_000,
            optimizer=OptimizerConfig(lr=3e-4, beta2=0.98, weight_decay=1e-2),
            schedule=ScheduleConfig(warmup_steps=2000, decay_fraction=0.5),
            clip_norm=400.0,  # of the paper, section 6
            evaluate_every=2000,
            save_every=2000,
        ),
        precision=PrecisionConfig(activations="fp32"),
    )


def mandarin() -> Run:
    """As english, with some 6000 characters as outputs; any script works."""
    run = english()
    data = replace(run.task.data, units="found", text="as_it_is")
    model = replace(run.model, vocab_size=6000, recurrent=replace(run.model.recurrent, width=2000))
    return replace(run, name="mandarin", model=model, task=replace(run.task, data=data))


RECIPES: dict[str, Callable[[], Run]] = {
    "tiny": tiny,
    "an4": an4,
    "an4_streaming": an4_streaming,
    "english": english,
    "mandarin": mandarin,
}
