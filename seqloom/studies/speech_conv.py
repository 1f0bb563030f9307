"""Does a convolution over frequency as well as time make a recogniser more robust to noise?

Paper: Deep Speech 2, section 3.5 and table 3: 2D convolutions gain little on regular speech and much on noisy speech.
"""

from dataclasses import replace
from pathlib import Path

from seqloom.core.config import config
from seqloom.studies.paired import difference
from seqloom.studies.speech_noise import NOISY_CER, NOISY_WER, NoisyTaskConfig
from seqloom.studies.speech_runs import Recognisers, Scale, SpeechOptions, judged, recogniser, train_recognisers
from seqloom.studies.study import Claim, Findings
from seqloom.systems.deep_speech2.config import ConvConfig, Run
from seqloom.train.observer import Observer

ONE, TWO = "1x1d", "2x2d"
PAPER = {ONE: "9.52, noisy 19.36", TWO: "9.06, noisy 15.71"}


@config
class Options(SpeechOptions):
    """Train one layer of 1D convolution and two of 2D convolution, and measure both in silence and in babble.

    Example: seqloom study speech_conv --data AN4_FOLDER --steps 800
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
    table = found.table("Convolutions", PAPER, ("noisy CER", NOISY_CER), ("noisy WER", NOISY_WER))
    return found.findings(
        "1D and 2D convolutions under noise",
        [table],
        [
            judged(
                "noisy speech",
                "2D convolutions make fewer character errors in babble than a 1D convolution.",
                "WER 19.36 to 15.71, 18.9 % fewer",
                found.difference(TWO, ONE, NOISY_CER),
                lambda gap: gap.below,
            ),
            _more(found),
        ],
        "Babble is of four other held-out utterances, 5 to 10 dB below the speech; both models trained with noise.",
    )


def _more(found: Recognisers) -> Claim:
    clean, noisy = ({v: found.values(v, m) for v in (ONE, TWO)} for m in ("cer", NOISY_CER))
    seeds = [seed for seed in sorted(clean[ONE].keys() & clean[TWO].keys()) if clean[ONE][seed] and noisy[ONE][seed]]
    gap = difference([noisy[TWO][seed] / noisy[ONE][seed] - clean[TWO][seed] / clean[ONE][seed] for seed in seeds])
    return judged(
        "more than on regular speech",
        "The share of errors that 2D convolutions save is larger on noisy than on regular speech.",
        "18.9 % fewer on noisy, 4.8 % fewer on regular speech",
        gap,
        lambda gap: gap.below,
    )


def _variants(scale: str, channels: int, second: ConvConfig, steps: int) -> dict[str, Run]:
    run = recogniser("speech_conv", scale, steps)
    task = run.task
    run = replace(
        run, task=NoisyTaskConfig(data=task.data, batch_rows=task.batch_rows, evaluate_rows=task.evaluate_rows)
    )
    flat = (ConvConfig(channels=channels, kernel=(1, 11), stride=(1, 2)),)
    return {
        ONE: replace(run, model=replace(run.model, convolution="1d", conv=flat)),
        TWO: replace(run, model=replace(run.model, conv=(run.model.conv[0], second))),
    }


SCALES = {
    "laptop": Scale(
        runs=_variants("laptop", 96, ConvConfig(channels=8, kernel=(11, 11), stride=(2, 1)), steps=300), seeds=3
    ),
    "gpu": Scale(
        runs=_variants("gpu", 1280, ConvConfig(channels=32, kernel=(21, 11), stride=(2, 1)), steps=3000), seeds=3
    ),
}
