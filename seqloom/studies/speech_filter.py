"""Does a linear classifier on CTC costs find transcripts that are wrong?

Transcripts of held-out speech are spoiled on purpose; half of them teach the classifier, the other half measure it.
Paper: Deep Speech 2, section 5.1. There, people had checked a sample, and words in error fell from 17 % to 5 % while
more than half of the data was kept.
"""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

from seqloom.core.config import Interval, config
from seqloom.studies.speech_model import ModelOptions, trained
from seqloom.studies.speech_runs import SOURCE
from seqloom.studies.study import Claim, Findings, Table
from seqloom.systems.deep_speech2.data_filter import Filtered, filter_transcripts
from seqloom.train.observer import Observer

PRECISION, RECALL = 0.9, 0.5
PAPER_LEFT = 5 / 17
"""Share of the errors that the paper's filter leaves."""


@config
class Options(ModelOptions):
    """Spoil transcripts of speech that a recogniser has not learned from, and have them found.

    Example: seqloom study speech_filter --model runs/an4
    """

    corrupt_fraction: Annotated[float, Interval(gt=0, lt=1)] = 0.2
    """Share of the transcripts that is spoiled."""


def study(options: Options, folder: Path, watch: Observer) -> Findings:
    """Train the recogniser where none is named, and filter.

    Raises:
        ConfigError, DataError, CheckpointError: model or speech cannot be used.
        Interrupted: a signal; the same command goes on.
    """
    place, run = trained(options, folder, watch)
    found = filter_transcripts(place, (), options.corrupt_fraction, progress=watch.on_prepare)
    speech = ", ".join(source.title for source in run.task.data.sources)
    return findings(found, options, {"recogniser": f"{run.name}, {run.train.steps} steps", "speech": speech})


def findings(found: Filtered, options: Options, setting: dict[str, str]) -> Findings:
    """What a filter found."""
    quality = found.quality
    wrongly = sum(one.wrong > 0.5 for one in found.judged) / len(found.judged)
    left = quality.kept_wrong / options.corrupt_fraction
    rows = [
        ("precision", "-", f"{quality.precision:.1%}"),
        ("recall", "-", f"{quality.recall:.1%}"),
        ("wrong transcripts before", "17 % (words)", f"{quality.spoiled / quality.utterances:.1%}"),
        ("wrong transcripts among those kept", "5 % (words)", f"{quality.kept_wrong:.1%}"),
        ("true transcripts called wrong", "-", f"{wrongly:.1%}"),
    ]
    return Findings(
        title="Finding wrong transcripts by their CTC costs",
        source=SOURCE,
        setting=setting
        | {
            "spoiled": f"{options.corrupt_fraction:.0%} of the transcripts: half are another's words, the others lack "
            "a word or have one too many",
            "measured on": f"{quality.utterances} transcripts, {quality.spoiled} of them spoiled",
        },
        tables=[
            Table(title="Filter", headings=("", "paper", "here"), rows=rows),
            Table(
                title="Weights",
                headings=("feature", "weight"),
                rows=[(name, f"{weight:+.2f}") for name, weight in found.weights.items()],
                note="Of features at mean 0 and deviation 1.",
            ),
        ],
        claims=[
            Claim(
                name="precision",
                says=f"At least {PRECISION:.0%} of those called wrong are wrong, and at least {RECALL:.0%} are found.",
                paper="no figures",
                here=f"precision {quality.precision:.1%}, recall {quality.recall:.1%}",
                holds=quality.precision >= PRECISION and quality.recall >= RECALL,
            ),
            Claim(
                name="cleaner data",
                says="Filtering leaves at most the paper's share of the errors.",
                paper=f"17 % to 5 %, so {PAPER_LEFT:.0%} are left",
                here=f"{left:.0%} are left",
                holds=left <= PAPER_LEFT,
            ),
        ],
        remarks=["What is wrong here was spoiled by a program; wrong transcripts of real archives are of other kinds."],
        data={"quality": asdict(quality), "weights": found.weights},
    )
