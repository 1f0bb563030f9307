"""Do outputs that stand for pairs of letters allow a model to look at speech in longer steps?

CTC needs a step for every label, and one more between equal ones. Pairs of letters halve the labels, so a time stride
of 4 keeps its accuracy and takes half the time of a stride of 2.
Paper: Deep Speech 2, section 3.6 and table 4 (without language model, since one favours letters).
"""

from dataclasses import replace
from pathlib import Path
from statistics import mean

from seqloom.core.config import config
from seqloom.studies.speech_runs import Recognisers, Scale, SpeechOptions, judged, recogniser, train_recognisers
from seqloom.studies.study import Claim, Findings
from seqloom.systems.deep_speech2.config import Run
from seqloom.train.observer import Observer

PAPER = {"letters_2": "14.93", "bigrams_2": "14.56", "letters_4": "18.86", "bigrams_4": "14.84"}
BIGRAMS = 400
"""Outputs kept for letters and pairs; enough for AN4 and for the synthetic words."""


@config
class Options(SpeechOptions):
    """Train letters and bigrams at time strides of 2 and 4.

    Example: seqloom study speech_bigrams --data AN4_FOLDER --steps 1000
    """


def study(options: Options, folder: Path, watch: Observer) -> Findings:
    """Train what is missing, and judge all that is there.

    Raises:
        ConfigError: nothing could be trained in the time given.
        Interrupted: finished runs are stored, and the same command goes on.
    """
    return findings(train_recognisers(SCALES[options.scale], options, folder, watch))


def findings(found: Recognisers) -> Findings:
    """What the runs say, however many there are."""
    counts = {variant: found.mean(variant, "utterances") for variant in found.runs}
    known = sorted({int(count) for count in counts.values() if count is not None})
    dropped = (
        "All variants were measured on the same number of utterances, so a stride of 4 leaves steps enough for letters "
        "here; the paper's English has more letters to a second."
        if len(known) < 2
        else f"Variants were measured on {', '.join(map(str, known))} utterances: where a stride leaves too few steps "
        "for the labels, an utterance is left out, which favours that variant."
    )
    return found.findings(
        "Letters and bigrams at long strides",
        [found.table("Outputs and time stride", PAPER)],
        [
            judged(
                "bigrams at stride 4",
                "At a time stride of 4, bigrams leave less than 0.9 of the character errors of letters.",
                "WER 18.86 to 14.84, ratio 0.79",
                found.difference("bigrams_4", "letters_4"),
                lambda gap: gap.below and gap.mean < -0.1,
            ),
            _time(found),
        ],
        dropped,
    )


def _time(found: Recognisers) -> Claim:
    long, short = (
        [trial.step_seconds for trial in found.trials(variant).values()] for variant in ("bigrams_4", "letters_2")
    )
    ratio = mean(long) / mean(short) if long and short else None
    return Claim(
        name="time of a step",
        says="A step at stride 4 takes at most 0.65 of the time of one at stride 2.",
        paper="told in words: fewer steps make training and use cheaper",
        here="needs both variants" if ratio is None else f"{ratio:.2f}",
        holds=None if ratio is None else ratio <= 0.65,
    )


def _variants(scale: str, steps: int) -> dict[str, Run]:
    run, found = recogniser("speech_bigrams", scale, steps), dict[str, Run]()
    for stride in (2, 4):
        first, *later = run.model.conv
        conv = (replace(first, stride=(first.stride[0], stride)), *later)
        for units in ("letters", "bigrams"):
            size = run.model.vocab_size if units == "letters" else BIGRAMS
            data = replace(run.task.data, units="characters" if units == "letters" else "bigrams")
            model = replace(run.model, conv=conv, vocab_size=size)
            found[f"{units}_{stride}"] = replace(run, model=model, task=replace(run.task, data=data))
    return found


SCALES = {
    "laptop": Scale(runs=_variants("laptop", steps=240), seeds=3),
    "gpu": Scale(runs=_variants("gpu", steps=3000), seeds=3),
}
