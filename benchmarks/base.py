"""This working tree beside an older commit: the same case of today's benchmarks, run with either package in turns.

The older package is exported into a folder of its own, with today's benchmarks beside it, and each measurement is a
process started in the one or the other; of two packages only one is ever in a process. Both must give the same
`outcome`, or they do not compute the same and their times say nothing.
"""

import importlib
import subprocess
import tarfile
import tempfile
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from shutil import copytree, ignore_patterns
from typing import Any

from benchmarks.case import Disagreement, Line, NotHere
from benchmarks.child import ROOT, ChildFailed, call, where
from benchmarks.pairing import OURS, quartiles, ratios, short

SAME = 0.01
"""Largest difference of outcomes, as a share; rounding in BF16 stays below it."""


def beside_base(case: str, options: Namespace) -> Line:
    """Times and memory of a case here and at the base; ratios are base over here, so above 1 we improved.

    Raises:
        Disagreement: the outcomes differ.
        NotHere: no such commit, or nothing to compare.
    """
    plain = {name: value for name, value in vars(options).items() if isinstance(value, str | int | float | None)}
    sides: dict[str, list[Line]] = {"here": [], "base": []}
    with exported(options.base) as (folder, commit):
        for turn in range(options.rounds):
            for side in ("here", "base") if turn % 2 else ("base", "here"):
                home = ROOT if side == "here" else folder
                sides[side].append(_in_process(case, plain, home))
    here, base = sides["here"], sides["base"]
    gate = refuse_other_outcome(here[0].get("outcome"), base[0].get("outcome"), options.base)
    facts: Line = {"base": commit, "gate": gate}
    for key, ratio in (("seconds", "ratio"), ("bytes", "bytes_ratio")):
        if key in here[0] and key in base[0]:
            mine, theirs = ([_ours(line[key]) for line in lines] for lines in (here, base))
            facts[key] = {OURS: quartiles(mine), "base": quartiles(theirs)}
            facts[ratio] = {"base": ratios(theirs, mine)}
    if len(facts) == 2:
        raise NotHere("this case measures nothing that two commits could be compared by")
    return facts


def refuse_other_outcome(here: float | None, base: float | None, revision: str) -> dict[str, float]:
    """The outcomes, as the gate's record; empty where a case has none."""
    if here is None or base is None:
        return {}
    if not abs(here - base) <= SAME * abs(here):
        raise Disagreement(f"the outcome is {short(here)} here and {short(base)} at {revision}; not compared")
    return {"here": short(here), "base": short(base)}


@contextmanager
def exported(revision: str) -> Iterator[tuple[Path, str]]:
    """A folder with the package as of a commit and today's benchmarks, and the commit's full name."""
    found = _git("rev-parse", "--verify", f"{revision}^{{commit}}")
    if found.returncode:
        raise NotHere(f"git knows no commit '{revision}' here")
    commit = found.stdout.decode().strip()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with tarfile.open(fileobj=BytesIO(_git("archive", commit, "seqloom").stdout)) as archive:
            archive.extractall(folder, filter="data")
        copytree(ROOT / "benchmarks", folder / "benchmarks", ignore=ignore_patterns("results", "__pycache__"))
        yield folder, commit


def measure_alone(case: str, options: dict[str, Any], home: str) -> Line:
    """Our side of one case with the package of a folder; called in a process started there."""
    import torch

    assert where() == str(Path(home, "seqloom")), f"the package of {home} is not the one that was imported"
    torch.set_num_threads(options["threads"])
    torch.manual_seed(0)
    area = importlib.import_module(f"benchmarks.{options['area']}")
    chosen = Namespace(**options | {"alone": True})
    (measure,) = [found.measure for found in area.cases(chosen) if found.name == case]
    line: Line = measure(chosen)
    return line


def _in_process(case: str, options: dict[str, Any], home: Path) -> Line:
    try:
        line: Line = call("benchmarks.base", "measure_alone", case, options, str(home), cwd=home)
    except ChildFailed as failure:
        if home == ROOT:
            raise
        raise NotHere(f"the base cannot run this case: {str(failure).splitlines()[-1]}") from None
    return line


def _ours(value: dict[str, Any]) -> float:
    """Our median time, or our bytes."""
    found = value[OURS]
    return float(found[1] if isinstance(found, list) else found)


def _git(*words: str) -> "subprocess.CompletedProcess[bytes]":
    return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, check=False)
