"""The claims of the study of attention, held against what was measured."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import mean

from seqloom.studies.attention_causes import Causes
from seqloom.studies.attention_runs import ATTENTION, FIXED, LSTM, PONG, PONG_SPEED, TOP_DOWN, Trained
from seqloom.studies.study import Claim
from seqloom.systems.attention_agent.config import Run

CATCH_BEST, MEMORY_CHANCE, PONG_RANDOM = 4.0, 0.25, -20.7
"""The best return of Catch; returns without learning."""
REACHED, LONGER = 0.9, 1.5
MEMORY_RATIO = 0.8
NEAR_RATIO, MASKING_RATIO, RISEN = 5, 3, 0.6
PONG_RETURN, PONG_FRAMES = -5, 5e6
UNTRAINED = "not trained yet"


@dataclass(frozen=True, kw_only=True)
class Measured:
    """All that the findings are made from.

    Attributes:
        causes: of the trained attention agent, by part and seed.
        missing: why a part was not trained.
    """

    scale: str
    runs: Mapping[str, Mapping[str, Run]]
    trained: Mapping[str, Sequence[Trained]]
    causes: Mapping[str, Mapping[int, Causes]] = field(default_factory=dict)
    missing: Sequence[str] = ()

    def of(self, part: str, variant: str) -> list[Trained]:
        return [each for each in self.trained.get(part, ()) if each.variant == variant]

    def mean_return(self, part: str, variant: str) -> float | None:
        found = [each.ret for each in self.of(part, variant)]
        return mean(found) if found else None


def judged_part(found: Measured) -> str:
    """Pong if there is an agent that learned it, else Catch."""
    ret = found.mean_return("pong", PONG)
    return "pong" if ret is not None and ret > PONG_RETURN else "catch"


def a3(found: Measured) -> Claim:
    mine, theirs = (
        {each.seed: each.steps_to(REACHED * CATCH_BEST) for each in found.of("catch", core)}
        for core in (ATTENTION, LSTM)
    )
    seeds = sorted(mine.keys() & theirs.keys())
    told, held = [], []
    for seed in seeds:
        one, other = mine[seed], theirs[seed]
        words = ("never" if steps is None else f"{steps / 1e3:,.0f} k" for steps in (one, other))
        told.append(f"seed {seed}: " + " against ".join(words))
        held.append(one is not None and (other is None or one <= LONGER * other))
    return Claim(
        name="A3 learning",
        says="On Catch the attention agent reaches 90 % of the best return within 1.5 times the LSTM's steps.",
        paper="on Atari at least as good as agents without the bottleneck in the median",
        here="; ".join(told) or UNTRAINED,
        holds=all(held) if held else None,
    )


def a4(found: Measured, part: str) -> list[Claim]:
    some = list(found.causes.get(part, {}).values())
    near = [each.judged() for each in some]
    told = [
        f"{each.ratio:.1f} times within {each.radius} cells (at most {1 / each.uniform:.0f} are possible)"
        for each in near
    ]
    kls = [f"{each.masking_ratio:.1f} times ({each.attended_kl:.3g} against {each.other_kl:.3g} nats)" for each in some]
    return [
        Claim(
            name="A4 near",
            says=f"Attention near ball and paddle is at least {NEAR_RATIO} times that of a uniform map ({part}).",
            paper="maps follow the player, threats and targets",
            here="; ".join(told) or UNTRAINED,
            holds=all(each.ratio >= NEAR_RATIO for each in near) if near else None,
        ),
        Claim(
            name="A4 masking",
            says=f"Covering what is attended changes the policy at least {MASKING_RATIO} times as much as covering a "
            f"region of its size elsewhere ({part}).",
            paper="attention is causal",
            here="; ".join(kls) or UNTRAINED,
            holds=all(each.masking_ratio >= MASKING_RATIO for each in some) if some else None,
        ),
    ]


def a5(found: Measured) -> Claim:
    mine, fixed = (found.mean_return("memory", variant) for variant in (TOP_DOWN, FIXED))
    here, holds = UNTRAINED, None
    if mine is not None and fixed is not None:
        here = f"{fixed:.2f} against {mine:.2f}, chance {MEMORY_CHANCE}"
        holds = mine > MEMORY_CHANCE / MEMORY_RATIO and fixed <= MEMORY_RATIO * mine
    return Claim(
        name="A5 queries",
        says="With a query that is always the same, an agent that must remember a cue gets at most 0.8 of the return.",
        paper="queries come from the recurrent state, top-down",
        here=here,
        holds=holds,
    )


def a6(found: Measured) -> Claim:
    some = found.of("pong", PONG)
    here, holds = UNTRAINED, None
    if some:
        frames, ret = some[0].curve[-1]
        speeds = [
            f"{each.frames_per_second:,.0f}" for variant in (PONG, PONG_SPEED) for each in found.of("pong", variant)
        ]
        size = f" (the paper's size: {speeds[1]})" if len(speeds) > 1 else ""
        here = f"{ret:.1f} after {frames / 1e6:.2g} M frames, {speeds[0]} frames a second{size}"
        holds = True if ret > PONG_RETURN else False if frames >= PONG_FRAMES else None
        here += "" if holds is not None else "; the claim is about 5 to 10 M"
    return Claim(
        name="A6 pong",
        says=f"Pong is played with a return above {PONG_RETURN} after 5 to 10 M frames (random: {PONG_RANDOM}).",
        paper="2 G frames for each game",
        here=here,
        holds=holds,
    )


def a7(found: Measured, part: str) -> Claim:
    some = list(found.causes.get(part, {}).values())
    told = [f"in {each.risen:.0%} of {each.insertions}, median {each.rise:.1f} times" for each in some]
    return Claim(
        name="A7 insertion",
        says=f"A pasted object draws at least 3 times the attention to its place in 60 % of the trials ({part}).",
        paper="attention moves to a pasted enemy and the policy changes",
        here="; ".join(told) or UNTRAINED,
        holds=all(each.risen >= RISEN for each in some) if some else None,
    )


def saliency(found: Measured, part: str) -> Claim:
    some = list(found.causes.get(part, {}).values())
    told = [
        f"correlation {each.correlation:.2f}, entropy {each.attention_entropy:.2f} against {each.saliency_entropy:.2f}"
        for each in some
    ]
    return Claim(
        name="saliency",
        says=f"Attention agrees with perturbation saliency and is sharper ({part}).",
        paper="shown on pictures",
        here="; ".join(told) or UNTRAINED,
        holds=all(each.correlation > 0 and each.attention_entropy < each.saliency_entropy for each in some)
        if some
        else None,
    )
