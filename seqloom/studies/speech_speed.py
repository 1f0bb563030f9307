"""How fast is training as a whole, beside the plain way to write it; and CTC, beside torch's?

    plain   minibatches of any lengths, padded to the longest recording of all; a loop over steps for every recurrent
            layer; torch's CTC on the CPU
    here    minibatches of like lengths, padded to their own longest; the implementations that `seqloom show` names

Both take the same network from the same weights and give the same loss for the same utterances, which is checked first.
Paper: Deep Speech 2, section 4 (7 times as fast as the system before it) and table 7 (CTC on the GPU).
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

from seqloom.core.config import Ge, MinLen, config, to_data
from seqloom.data.config import SourceConfig
from seqloom.studies.measured import measured
from seqloom.studies.speech_runs import SOURCE
from seqloom.studies.speech_timing import ctc_accuracy, ctc_times, system_times
from seqloom.studies.study import Claim, Findings, Table
from seqloom.systems.deep_speech2.config import LETTERS, AugmentConfig, Run
from seqloom.systems.deep_speech2.recipes import an4, english
from seqloom.train.observer import Observer

WHOLE, DEVICE, ACCURATE = 7.0, 10.0, 1e-5
SHAPES = ((150, 40, 28), (150, 20, 5000))
"""Steps, labels, symbols, as the authors of the paper time their CTC."""
TITAN = {(150, 40, 28, 1): 3.1, (150, 40, 28, 16): 3.2, (150, 40, 28, 64): 3.3,
         (150, 20, 5000, 1): 7.0, (150, 20, 5000, 16): 9.0, (150, 20, 5000, 64): 16.0}  # fmt: skip
"""Milliseconds on a Titan X, from the README of warp-ctc."""


@config
class Options:
    """Time training steps of the whole system and of a plain one, and CTC beside torch's.

    Example: seqloom study speech_speed --data AN4_FOLDER
    """

    scale: Literal["laptop", "gpu"] = "laptop"
    """laptop: the network of deep_speech2/an4; gpu: that of deep_speech2/english with layers of 1280, 64 utterances."""
    data: Annotated[tuple[str, ...], MinLen(1)] = (LETTERS,)
    """Speech to learn; how much its lengths differ decides how much padding costs."""
    turns: Annotated[int, Ge(1)] = 3
    """Steps of each way, taken in turns after one of each to warm up."""


def study(options: Options, folder: Path, watch: Observer) -> Findings:
    """Measure what is missing, and judge.

    Raises:
        DataError: the speech cannot be used.
        CheckpointError: what was measured cannot be written.
    """
    run = planned(options)
    settings = {"run": to_data(run), "turns": options.turns}
    watch.on_prepare("timing CTC", 0.0)
    shapes = {"shapes": SHAPES, "rows": (1, 16, 64)}
    ctc, _ = measured(folder / "ctc.json", shapes, lambda: ctc_times(SHAPES, (1, 16, 64)))
    accuracy, _ = measured(folder / "ctc_accuracy.json", {"steps": 2000}, ctc_accuracy)
    system, machine = measured(
        folder / f"system-{options.scale}.json", settings, lambda: system_times(run, options.turns, watch.on_prepare)
    )
    return findings(system, ctc, accuracy, run, machine)


def planned(options: Options) -> Run:
    """The training whose steps are timed."""
    run = english() if options.scale == "gpu" else an4()
    model = run.model
    if options.scale == "gpu":
        model = replace(model, recurrent=replace(model.recurrent, width=1280))
    sources = tuple(SourceConfig(path=path) for path in options.data)
    data = replace(run.task.data, sources=sources)
    task = replace(run.task, data=data, augment=AugmentConfig(noise_fraction=0.0), sorta_grad=False)
    return replace(run, model=model, task=task)


def findings(
    system: Mapping[str, Any], ctc: list[dict[str, Any]], accuracy: Mapping[str, float], run: Run, machine: str
) -> Findings:
    """What the measurements say."""
    ratio = system["plain_seconds"] / system["seconds"]
    rate = run.task.batch_rows
    names = {"seconds": "here", "plain_seconds": "plain"}
    rows = [
        (name, f"{system[key]:.3f}", f"{rate / system[key]:.1f}", f"{system[key.replace('seconds', 'padding')]:.0%}")
        for key, name in names.items()
    ]
    shares = [(name, f"{gain:.2f}") for name, gain in system["gains"].items()]
    timed = [
        (
            f"{c['steps']} steps, {c['labels']} labels, {c['symbols']} symbols, {c['rows']} rows",
            f"{TITAN[c['steps'], c['labels'], c['symbols'], c['rows']]:.1f}",
            f"{1000 * c['seconds']:.2f}", f"{1000 * c['torch_seconds']:.2f}",
            "-" if c["round_trip_seconds"] is None else f"{1000 * c['round_trip_seconds']:.2f}",
        )
        for c in ctc
    ]  # fmt: skip
    return Findings(
        title="Speed of training, and of CTC",
        source=f"{SOURCE}, section 4",
        setting={
            "network": f"{run.name}, {len(run.model.conv)} convolutions, {run.model.recurrent.layers} "
            f"{run.model.recurrent.kind} layers of {run.model.recurrent.width}",
            "step": f"{rate} utterances, forward, backward and update",
            "speech": ", ".join(source.title for source in run.task.data.sources),
            "computed on": machine,
        },
        tables=[
            Table(title="Training", headings=("way", "seconds a step", "utterances a second", "padding"), rows=rows),
            Table(
                title="What each part gives",
                headings=("the plain way, but with", "times as fast"),
                rows=shares,
                note="Each alone; their product need not be the whole.",
            ),
            Table(
                title="CTC, milliseconds of cost and gradient",
                headings=("shape", "paper's, Titan X", "here", "torch", "CPU and copies"),
                rows=timed,
            ),
        ],
        claims=[
            Claim(
                name="whole system",
                says=f"Training takes at least {WHOLE:g} times as many utterances a second as the plain way.",
                paper="7 times as fast as the system before it",
                here=f"{ratio:.2f} times",
                holds=ratio >= WHOLE,
            ),
            Claim(
                name="CTC is right",
                says=f"After 2000 steps costs are within {ACCURATE:g} of those in double precision, and gradients no "
                "farther from them than torch's own of the same precision; repeats and empty labels are among them.",
                paper="told in words: computed in log space for long utterances",
                here=f"costs {accuracy['cost']:.1e}, gradients {accuracy['gradient']:.1e} "
                f"(torch: {accuracy['torch_cost']:.1e}, {accuracy['torch_gradient']:.1e})",
                holds=accuracy["finite"] == 1.0
                and accuracy["cost"] <= ACCURATE
                and accuracy["gradient"] <= max(ACCURATE, accuracy["torch_gradient"]),
            ),
            _round_trip(ctc),
        ],
        remarks=[
            "The plain way is no older release but the same network without what was built here.",
            "Recordings are decoded once and kept in both ways.",
        ],
        data={"system": dict(system), "ctc": ctc, "ctc_accuracy": dict(accuracy)},
    )


def _round_trip(ctc: list[dict[str, Any]]) -> Claim:
    ratios = [c["round_trip_seconds"] / c["seconds"] for c in ctc if c["round_trip_seconds"] and c["rows"] == 64]
    return Claim(
        name="CTC on the GPU",
        says=f"With 64 utterances, CTC on the GPU takes at most 1/{DEVICE:g} of that on the CPU with the copies "
        "there and back.",
        paper="29 times as fast in English, 12.5 times in Mandarin, by epoch",
        here=f"{min(ratios):.1f} times or more" if ratios else "there is no GPU here",
        holds=min(ratios) >= DEVICE if ratios else None,
    )
