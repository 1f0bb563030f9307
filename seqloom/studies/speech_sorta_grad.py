"""Does it help to hear short utterances first in the first epoch (SortaGrad)?

Costs of CTC grow with length, and an untrained deep network may diverge on long ones. Measured after three epochs, as
early as the order can still matter; a run whose loss or gradient was no number counts as lost.
Paper: Deep Speech 2, section 3.3 and table 2.
"""

from dataclasses import replace
from pathlib import Path

from seqloom.core.config import config
from seqloom.studies.speech_runs import Recognisers, Scale, SpeechOptions, recogniser, train_recognisers
from seqloom.studies.study import Claim, Findings
from seqloom.systems.deep_speech2.config import Run
from seqloom.train.observer import Observer

PAPER = {"shuffled": "11.96", "sorted": "10.83", "shuffled_norm": "9.78", "sorted_norm": "9.52"}


@config
class Options(SpeechOptions):
    """Train a recogniser with and without SortaGrad, with and without batch normalization.

    The default length is three epochs of synthetic:letters; three of AN4 are --steps 159.

    Example: seqloom study speech_sorta_grad --data AN4_FOLDER --steps 159
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
    return found.findings(
        "SortaGrad: short utterances first",
        [found.table("Order of the first epoch, without and with normalization", PAPER)],
        [_better(found, ""), _better(found, "_norm"), _survives(found)],
        "The paper measures after 20 epochs, and so late a gain is what an easy beginning left behind.",
    )


def _better(found: Recognisers, norm: str) -> Claim:
    sides = found.values(f"sorted{norm}", "cer"), found.values(f"shuffled{norm}", "cer")
    seeds = sorted(sides[0].keys() & sides[1].keys())
    told = ", ".join(f"{sides[0][seed]:.2%} against {sides[1][seed]:.2%}" for seed in seeds)
    return Claim(
        name=f"sorted is no worse {'with' if norm else 'without'} normalization",
        says="In every seed the sorted first epoch leaves no more character errors than a shuffled one.",
        paper=f"WER {PAPER[f'shuffled{norm}']} to {PAPER[f'sorted{norm}']}",
        here=told or "needs both orders of one seed, trained to the end",
        holds=all(sides[0][seed] <= sides[1][seed] for seed in seeds) if seeds else None,
    )


def _survives(found: Recognisers) -> Claim:
    lost = {
        order: sum(cell.variant.startswith(order) and not cell.trial.finite for cell in found.cells)
        for order in ("shuffled", "sorted")
    }
    return Claim(
        name="fewer runs diverge",
        says="Fewer runs meet a loss or gradient that is no number where the first epoch is sorted.",
        paper="told in words: long utterances early make training diverge",
        here=f"{lost['sorted']} sorted and {lost['shuffled']} shuffled runs were lost"
        + ("" if any(lost.values()) else "; with none lost, nothing can be told"),
        holds=lost["sorted"] < lost["shuffled"] if any(lost.values()) else None,
    )


def _variants(scale: str, layers: int, steps: int) -> dict[str, Run]:
    run = recogniser("speech_sorta_grad", scale, steps, layers=layers)
    plain = replace(run, model=replace(run.model, norm="none"))
    return {
        f"{order}{end}": replace(each, task=replace(each.task, sorta_grad=order == "sorted"))
        for end, each in (("", plain), ("_norm", run))
        for order in ("shuffled", "sorted")
    }


SCALES = {
    "laptop": Scale(runs=_variants("laptop", layers=3, steps=81), seeds=3),
    "gpu": Scale(runs=_variants("gpu", layers=7, steps=600), seeds=5),
}
