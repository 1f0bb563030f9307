"""What does a language model save, and what does it cost when most symbols are never looked at?

    Q(y) = ln p_ctc(y | x) + α ln p_lm(y) + β words(y)

A Kneser-Ney model of the training transcripts, with α and β tuned on one half of the held-out speech and measured on
the other, in silence and in babble. The cost of pruning is measured in `speech_pruning.py`.
Paper: Deep Speech 2, section 3.8, table 6, and section 7.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

from seqloom.core.config import config
from seqloom.core.progress import Progress
from seqloom.studies.measured import measured
from seqloom.studies.speech_model import ModelOptions, trained
from seqloom.studies.speech_pruning import LOOKUPS, RELATIVE_CER, pruning, pruning_settings
from seqloom.studies.speech_runs import SOURCE
from seqloom.studies.study import Claim, Findings, Table
from seqloom.systems.deep_speech2.config import Run
from seqloom.train.observer import Observer

FALL = 0.2
ENOUGH = 10
"""Wrong words without a language model, below which nothing can be told."""
PAPER = "27.79 to 14.39 (5 layers, 1 RNN), 14.93 to 9.52 (9 layers, 7 RNNs)"
KINDS = {"regular": "held-out speech", "noisy": "the same in babble at 5 to 10 dB"}


@config
class Options(ModelOptions):
    """Decode held-out speech with and without a language model, and made-up Mandarin with and without pruning.

    Example: seqloom study speech_decoding --model runs/an4
    """


def study(options: Options, folder: Path, watch: Observer) -> Findings:
    """Train the recogniser where none is named, and decode.

    Raises:
        ConfigError, DataError, CheckpointError: model or speech cannot be used.
        Interrupted: a signal; the same command goes on.
    """
    place, run = trained(options, folder, watch)
    rates = decode_both(place, run, watch.on_prepare)
    settings = pruning_settings(options.scale)
    pruned, machine = measured(folder / "pruning.json", settings, lambda: pruning(settings, watch.on_prepare))
    speech = ", ".join(source.title for source in run.task.data.sources)
    setting = {"recogniser": f"{run.name}, {run.train.steps} steps", "speech": speech, "pruning measured on": machine}
    return findings(rates, pruned, setting)


def decode_both(folder: Path, run: Run, progress: Progress) -> dict[str, dict[str, float]]:
    """Error rates without and with a language model of the training transcripts, of regular and noisy speech."""
    from seqloom.studies.speech_noise import with_babble
    from seqloom.systems.deep_speech2.data import prepare
    from seqloom.systems.deep_speech2.hear import Heard
    from seqloom.systems.deep_speech2.ngram_estimate import estimate
    from seqloom.systems.deep_speech2.prior import LanguageModel, prior
    from seqloom.systems.deep_speech2.transcribe import Recogniser
    from seqloom.systems.deep_speech2.tune import measure, tune

    recogniser = Recogniser(folder)
    alphabet, length = recogniser.alphabet, recogniser.model.config.output_length
    data = prepare(run.task.data, length, len(alphabet), run.seed, progress, alphabet)
    model = estimate([one.text.split() for one in data.train], order=3).model
    rules = prior(alphabet.symbols, LanguageModel(model))
    found = {}
    for kind in KINDS:
        spoken = data.valid if kind == "regular" else with_babble(data.valid)
        outputs = [recogniser.log_probs([one.samples().numpy()])[0] for one in spoken]
        heard = [Heard(one.stored.name, one.text, each) for one, each in zip(spoken, outputs, strict=True)]
        tuned = tune(heard[::2], rules, alphas=(0.5, 1.0, 2.0), betas=(0.0, 1.0, 2.0), progress=progress)
        best = replace(rules, model=LanguageModel(model, weights=tuned.weights))
        without, with_model = measure(heard[1::2], replace(rules, model=None), None), measure(heard[1::2], best, None)
        found[kind] = {
            "words": float(sum(len(one.text.split()) for one in heard[1::2])),
            "utterances": float(len(heard[1::2])),
            "wer": without.wer,
            "wer_lm": with_model.wer,
            "cer": without.cer,
            "cer_lm": with_model.cer,
            "alpha": tuned.weights.alpha,
            "beta": tuned.weights.beta,
        }
    return found


def findings(rates: dict[str, dict[str, float]], pruned: dict[str, Any] | None, setting: dict[str, str]) -> Findings:
    """What the decodings say."""
    rows = [
        (
            KINDS[kind], f"{r['wer']:.2%}", f"{r['wer_lm']:.2%}", f"{r['cer']:.2%}", f"{r['cer_lm']:.2%}",
            f"{r['alpha']:g}, {r['beta']:g}",
        )
        for kind, r in rates.items()
    ]  # fmt: skip
    tables = [
        Table(
            title="Language model",
            headings=("speech", "WER without", "WER with", "CER without", "CER with", "α, β"),
            rows=rows,
            note=f"Paper, WER without and with: {PAPER}. Beam search with beam 128 in all cases.",
        )
    ]
    if pruned is not None:
        headings = ("search", "CER", "lookups", "seconds")
        sides = [(name, pruned[name]) for name in ("full", "pruned")]
        costs = [(n, f"{s['cer']:.2%}", f"{s['lookups']:,}", f"{s['seconds']:.2f}") for n, s in sides]
        note = "The paper's cutoffs: symbols up to a probability of 0.99, at most 40."
        tables.append(Table(title="Pruning", headings=headings, rows=costs, note=note))
    return Findings(
        title="Language model and pruning",
        source=SOURCE,
        setting=setting | {"words measured": f"{rates['regular']['words']:.0f}"},
        tables=tables,
        claims=[*(_falls(kind, rates[kind]) for kind in rates), *_pruning(pruned)],
        remarks=[
            "The language model knows the training transcripts alone, and held-out speakers say the same few words, so "
            "it is a stronger help than any model of free English.",
            "Made-up Mandarin: text from a random bigram chain over 5000 characters, sound as noisy log-probabilities.",
        ],
        data={"rates": rates, "pruning": pruned},
    )


def _falls(kind: str, rates: dict[str, float]) -> Claim:
    wrong, fall = rates["wer"] * rates["words"], 1 - rates["wer_lm"] / rates["wer"] if rates["wer"] else 0.0
    few = wrong < ENOUGH
    return Claim(
        name=f"language model, {kind}",
        says=f"A language model lowers the word error rate of {KINDS[kind]} by at least {FALL:.0%}.",
        paper=f"{PAPER}: by 36 to 48 %",
        here=f"only {wrong:.0f} words are wrong without one" if few else f"by {fall:.0%}",
        holds=None if few else fall >= FALL,
    )


def _pruning(pruned: dict[str, Any] | None) -> list[Claim]:
    """Two claims; not measured where the native decoder, which counts, is not there."""
    absent = "the native decoder is not there, and the reference is too slow"
    fewer: float | None = None
    change: float | None = None
    if pruned is not None:
        fewer = pruned["full"]["lookups"] / max(1, pruned["pruned"]["lookups"])
        change = pruned["pruned"]["cer"] / max(1e-9, pruned["full"]["cer"]) - 1
    return [
        Claim(
            name="fewer lookups",
            says=f"Pruning asks the language model at least {LOOKUPS} times less often.",
            paper="150 times less time for lookups in Mandarin",
            here=absent if fewer is None else f"{fewer:.0f} times",
            holds=None if fewer is None else fewer >= LOOKUPS,
        ),
        Claim(
            name="same errors",
            says=f"Pruning raises the character error rate by at most {RELATIVE_CER:.1%} of itself.",
            paper="0.1 to 0.3 %",
            here=absent if change is None else f"{change:+.2%}",
            holds=None if change is None else change <= RELATIVE_CER,
        ),
    ]
