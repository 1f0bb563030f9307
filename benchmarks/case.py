"""What an area hands to the command: cases, each measured on its own, each one line.

A line is plain data. Keys that the table and the comparison of commits know:

    seconds    {"ours": [lower quartile, median, upper quartile], "peer": [...]}
    ratio      {"peer": [...]}   paired: a peer's time over ours, so above 1 ours is the faster one
    bytes      {"ours": ..., "peer": ...}
    figures    {name: number}    whatever else was measured, with the unit in the name
    share_of_ceiling             of what this machine can do at most, measured in the same run
    outcome                      a number that was computed, by which two commits show that they compute the same
    skipped    {"peer": why it was not measured}
    error, not_measured          why nothing was: a gate failed; this machine lacks something

The gate comes first: `measure` raises `Disagreement` where ours and a peer do not compute the same, before it times
anything.
"""

from argparse import Namespace
from collections.abc import Callable
from typing import Any, NamedTuple

Line = dict[str, Any]


class Case(NamedTuple):
    """One thing to measure.

    Attributes:
        name: unique in its area; `--only` matches it with shell patterns.
        measure: builds, gates, warms up and measures. With `options.alone` it leaves out gate and peers: another
            commit is then measured beside this one.
        when_named: left out unless `--only` asks for it.
    """

    name: str
    measure: Callable[[Namespace], Line]
    when_named: bool = False


class Disagreement(Exception):  # noqa: N818  # a finding, not a slip
    """Ours and a peer do not compute the same, so that their times say nothing."""


class NotHere(Exception):  # noqa: N818  # a fact about the machine
    """This machine lacks what a case or a peer needs; says what."""
