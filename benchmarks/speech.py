"""Speech recognition, part by part and as a whole, beside what torch has for the same.

    python -m benchmarks speech --only 'ctc-*' 'train-*' --threads 2

    features-BINS       log-spectrograms                            beside torch.stft
    ctc-B-T-V           CTC loss and its gradient                   beside torch's ctc_loss
    rnn-B-T-H, gru-...  a recurrent layer, forward and backward     beside torch's RNN and GRU, and a loop over steps
    beam-PRIOR          prefix beam search, with and without a language model
    train-SIZE          training steps                              beside the same network of torch's own layers
    stream              a lone stream, by pieces of a tenth of a second
    dispatch-STREAMS    latency of simulated real-time streams      beside one stream after the other

Gate: features, costs, gradients and losses before and after a step agree; the search finds what its slow reference
finds; streams read the same in batches and one by one.
"""

from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks import ops
from benchmarks.case import Case, Disagreement, Line
from benchmarks.ceiling import arithmetic_rate
from benchmarks.op_cases import Contest
from benchmarks.pairing import OURS, Side, in_turns, plain, short
from benchmarks.peers import agree_on_losses
from benchmarks.speech_network import LAYERS, SIZES, TOY, TorchLayers, our_step, shapes, their_step, training_flops
from benchmarks.speech_ops import ctc, gru, rnn

RATE = 16_000
GATE_STEPS = 2
CTC = ((16, 150, 29), (16, 150, 6000), (4, 600, 29))
RECURRENT = ((16, 150, 96), (16, 150, 256))
STREAMS = (1, 8, 32)


def add_options(parser: ArgumentParser) -> None:
    parser.add_argument("--rows", type=int, default=16, help="utterances of a training step (default: 16)")
    parser.add_argument("--audio-seconds", type=float, default=4.0, help="of an utterance (default: 4)")


def cases(options: Namespace) -> list[Case]:
    contests = [(ctc, sizes) for sizes in CTC] + [(make, sizes) for make in (rnn, gru) for sizes in RECURRENT]
    return [
        *(Case(f"features-{bins}", partial(features, bins)) for bins in (161, 80)),
        *(Case("-".join([make.__name__, *map(str, sizes)]), partial(contest, make, sizes)) for make, sizes in contests),
        *(Case(f"beam-{prior}", partial(beam, prior)) for prior in ("nothing", "words")),
        *(Case(f"train-{size}", partial(train, size), when_named=size == TOY) for size in (*SIZES, TOY)),
        Case("stream", stream),
        *(Case(f"dispatch-{count}", partial(dispatch, count)) for count in STREAMS),
    ]


# --- features


def features(bins: int, options: Namespace) -> Line:
    from seqloom.systems.deep_speech2.features import FFT_BINS, FLOOR, bands, log_spectrogram

    sound = 0.1 * torch.randn(round(options.audio_seconds * RATE))
    window = torch.hann_window(320, periodic=False)
    scale = torch.full((FFT_BINS, 1), 2.0)
    scale[0] = scale[-1] = 1.0
    scale /= RATE * window.square().sum()

    def stft() -> Tensor:
        power = torch.stft(sound, 320, 160, window=window, center=False, return_complex=True).abs().square() * scale
        return ((power if bins == FFT_BINS else bands(bins).mT @ power) + FLOOR).log()

    sides: dict[str, Callable[[], Tensor]] = {OURS: lambda: log_spectrogram(sound, bins)}
    line: Line = {"outcome": float(sides[OURS]().mean())}
    if not options.alone:
        sides["stft"] = stft
        line["gate"] = _close({name: each() for name, each in sides.items()}, 1e-3)
    line |= in_turns({name: plain(each) for name, each in sides.items()}, options.repeats)
    factors = {f"{name}_real_time_factor": took[1] / options.audio_seconds for name, took in line["seconds"].items()}
    return line | {"figures": {name: short(factor) for name, factor in factors.items()}}


# --- loss and recurrence, as contests of the area `ops`


def contest(make: Callable[..., Contest], sizes: tuple[int, ...], options: Namespace) -> Line:
    return ops.measure(make, sizes, Namespace(**vars(options), device="cpu", format="fp32"))


# --- search


def beam(prior: str, options: Namespace) -> Line:
    """Utterances of spelled words whose right symbol is likely, but not sure, in every frame."""
    from seqloom.systems.deep_speech2.alphabet import ENGLISH
    from seqloom.systems.deep_speech2.beam_reference import BeamReference
    from seqloom.systems.deep_speech2.beam_search import BeamConfig, Decoder, decode
    from seqloom.systems.deep_speech2.ngram_estimate import estimate
    from seqloom.systems.deep_speech2.prior import LanguageModel, Weights
    from seqloom.systems.deep_speech2.prior import prior as rules_for
    from seqloom.systems.deep_speech2.synth import WORDS

    draw = torch.Generator().manual_seed(0)
    sentences = [[WORDS[i] for i in torch.randint(len(WORDS), (8,), generator=draw)] for _ in range(500)]
    model = None
    if prior == "words":
        model = LanguageModel(estimate(sentences, 3).model, "word", Weights(alpha=1.0, beta=1.0))
    rules = rules_for(ENGLISH, model)
    spoken = [spelled(" ".join(words), ENGLISH, draw) for words in sentences[:8]]
    line: Line = {}
    if not options.alone:
        settings = BeamConfig(beam=16)
        search = BeamReference(rules, settings.beam, settings.cutoff_prob, settings.cutoff_top_n)
        search.accept(spoken[0][:40])
        slow = sorted((each.ctc + each.bonus for each in search.found()), reverse=True)[:5]
        decoder = Decoder(rules, settings)
        decoder.accept(spoken[0][:40])
        fast = sorted((each.ctc + each.bonus for each in decoder.snapshot().found()), reverse=True)[:5]
        line["gate"] = _close({OURS: torch.tensor(fast), "reference": torch.tensor(slow)}, 1e-4)
    line["outcome"] = decode(spoken[0], rules)[0].score

    def search_all() -> None:
        for log_probs in spoken:
            decode(log_probs, rules)

    line |= in_turns({OURS: plain(search_all)}, options.repeats, len(spoken))
    seconds = line["seconds"][OURS][1]
    frames = sum(map(len, spoken)) / len(spoken)
    figures = {"utterances_per_second": 1 / seconds, "frames_of_an_utterance": frames}
    return line | {"beam": BeamConfig().beam, "figures": {name: short(value) for name, value in figures.items()}}


def spelled(text: str, symbols: tuple[str, ...], draw: torch.Generator) -> Tensor:
    """Log-probabilities [T V] of a recogniser that hears this text: every symbol for a frame, between blanks."""
    labels = [label for letter in text for label in (symbols.index(letter), 0, 0)]
    logits = torch.randn(len(labels), len(symbols), generator=draw) * 1.5
    logits[torch.arange(len(labels)), torch.tensor(labels)] += 5.0
    return logits.log_softmax(-1)


# --- training


def train(size: str, options: Namespace) -> Line:
    config, rows = shapes(size), options.rows
    frames = round(options.audio_seconds * 100) - 1
    batch = torch.randn(rows, config.features.bins, frames)
    targets = torch.randint(1, config.vocab_size, (rows, frames // 12))
    model = config.build().train()
    line: Line = {"parameters": sum(p.numel() for p in model.parameters()), "rows": rows, "frames": frames}
    steps = {OURS: our_step(model, batch, targets)}
    if not options.alone:
        steps[LAYERS] = their_step(TorchLayers(config, model), batch, targets)
    losses = {name: [step() for _ in range(GATE_STEPS)] for name, step in steps.items()}
    line["gate"] = agree_on_losses(losses, "fp32")
    line["outcome"] = losses[OURS][-1]
    line |= in_turns({name: plain(step) for name, step in steps.items()}, options.repeats, warm=True)
    flops, ceiling = training_flops(config, rows, frames), arithmetic_rate("fp32")
    medians = {name: seconds[1] for name, seconds in line["seconds"].items()}
    return line | {
        "figures": {f"{name}_utterances_per_second": short(rows / seconds) for name, seconds in medians.items()},
        "gflops": {name: short(flops / seconds / 1e9) for name, seconds in medians.items()},
        "ceiling_gflops": short(ceiling / 1e9),
        "share_of_ceiling": {name: short(flops / seconds / ceiling) for name, seconds in medians.items()},
    }


# --- streams


def _listening(size: str = "an4_streaming") -> Any:
    from seqloom.core.rooms import recipe
    from seqloom.systems.deep_speech2.alphabet import ENGLISH, Alphabet
    from seqloom.systems.deep_speech2.stream import StreamingModel

    torch.manual_seed(0)
    model = recipe(f"deep_speech2/{size}").model.build()
    model.alphabet = Alphabet(ENGLISH)
    model.head.weight.data.mul_(25)  # so that it says something
    return StreamingModel(model)


def stream(options: Namespace) -> Line:
    """What a piece of a tenth of a second costs, and how much later sound a text waits for by design."""
    from seqloom.systems.deep_speech2.budget import look_ahead_seconds
    from seqloom.systems.deep_speech2.greedy import Greedy
    from seqloom.systems.deep_speech2.stream import Listener, Stream

    model = _listening()
    pieces = (0.1 * torch.randn(round(options.audio_seconds * RATE))).split(RATE // 10)

    def begin() -> Stream:
        return Stream(model, Listener(Greedy(model.symbols), model))

    def hear(listening: Stream) -> None:
        for piece in pieces:
            listening.accept(piece)
        listening.finish()

    line = in_turns({OURS: Side(hear, begin)}, options.repeats, len(pieces))
    ahead = look_ahead_seconds(model.config)
    figures = {"real_time_factor": line["seconds"][OURS][1] / 0.1, "look_ahead_seconds": ahead}
    return line | {"figures": {name: short(value) for name, value in figures.items()}}


def dispatch(streams: int, options: Namespace) -> Line:
    """Seconds from the end of a user's sound to the final text, where the worker is this machine."""
    from seqloom.systems.deep_speech2.simulate import simulate

    model = _listening()
    sizes = {OURS: 16} if options.alone else {OURS: 16, "one_by_one": 1}
    utterances, seconds = max(8, streams), options.audio_seconds
    simulate(model, streams, utterances=2, seconds=0.5)  # warm
    found = {
        name: simulate(model, streams, utterances=utterances, seconds=seconds, max_batch=size)
        for name, size in sizes.items()
    }
    if any(one.texts != found[OURS].texts for one in found.values()):
        raise Disagreement("streams read differently in batches and one by one; not compared")
    figures: dict[str, float] = {}
    for name, one in found.items():
        for percent in (50, 98):
            figures[f"{name}_p{percent}_ms"] = short(1000 * one.statistics.latency(float(percent)))
        figures[f"{name}_mean_batch"] = short(one.statistics.mean_batch)
    return {"streams": streams, "utterances": utterances, "audio_seconds": seconds, "figures": figures}


def _close(found: dict[str, Tensor], bound: float) -> dict[str, float]:
    """The gate: largest differences from ours, as a share of the largest value.

    Raises:
        Disagreement: one is too large.
    """
    ours = found[OURS]
    gaps = {
        name: short(float((theirs - ours).abs().max() / ours.abs().max()))
        for name, theirs in found.items()
        if name != OURS
    }
    if not all(gap <= bound for gap in gaps.values()):
        raise Disagreement(f"differ by {gaps} of the largest value; not timed")
    return gaps
