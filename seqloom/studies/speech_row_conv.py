"""How much of what both directions know does a row convolution give to a model that hears the past only?

    r_t = s( Σ_{j=0..τ} w_j ∘ h_{t+j} )        above the last recurrent layer

Paper: Deep Speech 2, section 3.7. All models have about the same number of parameters: one direction is made wider.
"""

from dataclasses import replace
from pathlib import Path

from seqloom.core.config import config
from seqloom.studies.paired import difference
from seqloom.studies.speech_runs import Recognisers, Scale, SpeechOptions, judged, recogniser, train_recognisers
from seqloom.studies.study import Findings
from seqloom.systems.deep_speech2.budget import parameters
from seqloom.systems.deep_speech2.config import DeepSpeech2Config, RecurrentConfig, Run
from seqloom.train.observer import Observer

FORWARD, ROW, BOTH = "forward", "forward_row", "both"
CONTEXT = 10
"""τ: 0.2 s of speech at a time stride of 2."""
SHARE = 0.4
"""Of the gap between one and two directions, what a row convolution must close."""
LEAST_GAP = 0.005
"""In character errors: a smaller gap is chance, and a share of it means nothing."""


@config
class Options(SpeechOptions):
    """Train one direction, one with a row convolution, and two directions, all of the same size.

    Example: seqloom study speech_row_conv --data AN4_FOLDER --seeds 3 --steps 800
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
    cers = {variant: found.values(variant, "cer") for variant in found.runs}
    seeds = sorted(set.intersection(*(set(each) for each in cers.values())))
    gaps = [seed for seed in seeds if cers[FORWARD][seed] - cers[BOTH][seed] > LEAST_GAP]
    closed = difference([(cers[FORWARD][s] - cers[ROW][s]) / (cers[FORWARD][s] - cers[BOTH][s]) for s in gaps])
    without = [
        f"In {len(seeds) - len(gaps)} of {len(seeds)} seeds two directions were not better than one by "
        f"{LEAST_GAP:.1%} of the characters, so there was no gap to close."
    ]
    return found.findings(
        "Row convolution beside one and two directions",
        [found.table("Directions", {})],
        [
            judged(
                "row convolution",
                f"The row convolution closes at least {SHARE:.0%} of the gap in character errors.",
                "told in words: accuracy near that of two directions",
                closed,
                lambda share: share.mean >= SHARE and (share.half is None or share.mean - share.half > 0),
            ),
            judged(
                "one direction",
                "A row convolution leaves fewer character errors than one direction alone, in points.",
                "told in words",
                difference([cers[ROW][s] - cers[FORWARD][s] for s in seeds]),
                lambda gap: gap.below,
            ),
        ],
        *without,
        "That streaming gives the text of the whole utterance is a test, not a part of this study.",
    )


def as_large(model: DeepSpeech2Config, recurrent: RecurrentConfig, row_context: int | None) -> DeepSpeech2Config:
    """A model of other directions with nearly as many parameters: the width is chosen for it."""

    def of_width(width: int) -> DeepSpeech2Config:
        return replace(model, recurrent=replace(recurrent, width=width), row_context=row_context)

    wanted, start = parameters(model), model.recurrent.width
    return min(map(of_width, range(start, 2 * start)), key=lambda each: abs(parameters(each) - wanted))


def _variants(scale: str, layers: int, steps: int) -> dict[str, Run]:
    run = recogniser("speech_row_conv", scale, steps, layers=layers)
    alone = replace(run.model.recurrent, directions="forward")
    return {
        FORWARD: replace(run, model=as_large(run.model, alone, None)),
        ROW: replace(run, model=as_large(run.model, alone, CONTEXT)),
        BOTH: run,
    }


SCALES = {
    "laptop": Scale(runs=_variants("laptop", layers=2, steps=240), seeds=3),
    "gpu": Scale(runs=_variants("gpu", layers=5, steps=3000), seeds=3),
}
