"""Does sequence-wise batch normalization help, and the more the deeper the network is?

    B(W x) with statistics over all utterances and steps of a minibatch; the recurrent term U h is never normalized

Paper: Deep Speech 2, section 3.2 and table 1. There it costs a shallow network something and gains a deep one much.
"""

from dataclasses import replace
from pathlib import Path

from seqloom.core.config import config
from seqloom.studies.paired import Difference, difference
from seqloom.studies.speech_runs import Recognisers, Scale, SpeechOptions, judged, recogniser, train_recognisers
from seqloom.studies.study import Claim, Findings, Table
from seqloom.systems.deep_speech2.config import Run
from seqloom.train.observer import Observer

PAPER = {"1": "13.55", "1_norm": "14.40", "5": "10.77", "5_norm": "9.78", "7": "10.83", "7_norm": "9.52"}


@config
class Options(SpeechOptions):
    """Train shallow and deep recognisers with and without batch normalization, over the same utterances.

    Example: seqloom study speech_norm --data AN4_FOLDER --seeds 3
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
    depths = [variant for variant in found.runs if not variant.endswith("_norm")]
    deepest = depths[-1]
    rows = [
        (
            depth,
            f"{float(PAPER[f'{depth}_norm']) / float(PAPER[depth]) - 1:+.2%}",
            *(str(_gain(found, depth, measure) or "-") for measure in ("cer", "loss")),
        )
        for depth in depths
    ]
    return found.findings(
        "Batch normalization by depth",
        [
            found.table("Recurrent layers, without and with normalization", PAPER),
            Table(
                title="What normalization changes, paired by seed",
                headings=("recurrent layers", "paper, WER", "CER here", "loss here"),
                rows=rows,
                note="Below zero is better.",
            ),
        ],
        [
            judged(
                "deep",
                f"With {deepest} recurrent layers and equal steps, normalization lowers the held-out loss.",
                f"WER {PAPER[deepest]} to {PAPER[f'{deepest}_norm']}",
                _gain(found, deepest, "loss"),
                lambda gap: gap.below,
            ),
            _more(found, depths[0], deepest),
        ],
        "Widths are the same at every depth here, while the paper keeps the number of parameters.",
        "Without normalization every layer has a bias instead; all else is equal, the learning rate included.",
    )


def _gain(found: Recognisers, depth: str, measure: str) -> Difference | None:
    return found.difference(f"{depth}_norm", depth, measure)


def _more(found: Recognisers, shallow: str, deep: str) -> Claim:
    values = {name: found.values(name, "loss") for name in (shallow, f"{shallow}_norm", deep, f"{deep}_norm")}
    seeds = sorted(set.intersection(*(set(each) for each in values.values())))
    gap = difference(
        [
            values[f"{deep}_norm"][seed] / values[deep][seed] - values[f"{shallow}_norm"][seed] / values[shallow][seed]
            for seed in seeds
        ]
    )
    return judged(
        "more with depth",
        f"Normalization gains more (loss with over loss without) at {deep} layers than at {shallow}.",
        "WER ratio 1.06 at 1 layer, 0.91 at 5, 0.88 at 7",
        gap,
        lambda gap: gap.below,
    )


def _variants(scale: str, depths: tuple[int, ...], steps: int) -> dict[str, Run]:
    found = {}
    for depth in depths:
        run = recogniser("speech_norm", scale, steps, layers=depth)
        found[str(depth)] = replace(run, model=replace(run.model, norm="none"))
        found[f"{depth}_norm"] = run
    return found


SCALES = {
    "laptop": Scale(runs=_variants("laptop", (1, 5), steps=240), seeds=3),
    "gpu": Scale(runs=_variants("gpu", (1, 5, 7), steps=3000), seeds=3),
}
