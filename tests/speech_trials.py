"""For the studies of recognisers: trainings given instead of made."""

from typing import Any

from seqloom.studies.paired import Cell
from seqloom.studies.speech_runs import Recognisers, SpeechOptions
from seqloom.studies.trial import Trial


def trial(cer: float, *, loss: float = 1.0, seconds: float = 0.5, **more: float) -> Trial:
    """A finished run that ended at such a character error rate."""
    return Trial(
        settings={},
        machine="a machine",
        losses=[5.0, 4.0, 3.0],
        valid={"cer": cer, "wer": 2 * cer, "loss": loss, "utterances": 48, **more},
        watched=[],
        step_seconds=seconds,
    )


def lost() -> Trial:
    """A run that met a loss which is no number."""
    return Trial(
        settings={}, machine="a machine", losses=[5.0], valid={}, watched=[], step_seconds=0.5,
        ended="step 2: the loss is nan", finite=False,
    )  # fmt: skip


def recognisers(room: Any, trials: dict[str, list[Trial]]) -> Recognisers:
    """Trainings of a study's laptop scale that are given; variant -> trial by seed."""
    found = room.SCALES["laptop"].planned(SpeechOptions())
    found.cells.extend(
        Cell(variant=variant, seed=seed, trial=one) for variant, each in trials.items() for seed, one in enumerate(each)
    )
    return found


def verdicts(room: Any, trials: dict[str, list[Trial]]) -> dict[str, str]:
    """What a study says of them."""
    return {claim.name: claim.verdict for claim in room.findings(recognisers(room, trials)).claims}
