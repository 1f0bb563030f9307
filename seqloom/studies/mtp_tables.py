"""What a study of guesses says of its measurements, beside the papers' figures."""

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from seqloom.core.charts import Line, LineChart
from seqloom.core.readable import short
from seqloom.studies.study import Claim, Table

AUTO = "auto"
"""The number of guesses that the engine finds by itself."""
GREEDY, SAMPLED = "greedy", "sampled"
GIVEN = "given"
DEPTHS = {"trained 2 ahead": 2, "trained 1 ahead": 1}
"""Models of the study itself: name -> depth of the prediction block's training; the first is the papers' way."""
SLACK = 0.02
"""By how much a later guess may be accepted more often and still count as accepted less."""

Drafted = dict[str, dict[str, dict[str, Any]]]
"""Way of choosing -> number of guesses -> seconds, tokens, guesses offered and accepted by position, equal texts."""


def rates(count: Mapping[str, Any]) -> list[float]:
    """Share of the guesses of each position that were kept, of those that were offered."""
    return [kept / max(1, offered) for kept, offered in zip(count["accepted"], count["offered"], strict=True)]


def per_pass(count: Mapping[str, Any]) -> float:
    """Tokens that a pass of the model gives."""
    return count["tokens"] / max(1, count["tokens"] - sum(count["accepted"]))


def per_second(count: Mapping[str, Any]) -> float:
    return count["tokens"] / count["seconds"]


def gains(found: Drafted, way: str) -> dict[int, float]:
    """Number of guesses -> tokens a second over those of plain decoding."""
    plain = per_second(found[way]["0"])
    return {length: per_second(found[way][str(length)]) / plain for length in numbers(found, way)}


def numbers(found: Drafted, way: str) -> list[int]:
    """The numbers of guesses that were given."""
    return [int(length) for length in found[way] if length not in ("0", AUTO)]


def longest(found: Drafted, way: str) -> dict[str, Any]:
    """What came of the most guesses."""
    return found[way][str(max(numbers(found, way)))]


# Tables ------------------------------------------------------------------------------------------------------------


def acceptance(name: str, found: Drafted) -> Table:
    most = len(longest(found, GREEDY)["offered"])
    rows = [
        (f"{way}, {length}", *(f"{rate:.0%}" for rate in rates(count)), *[""] * (most - int(length)))
        for way, counts in found.items()
        for length, count in counts.items()
        if length not in ("0", AUTO)
    ]
    return Table(
        title=f"Guesses accepted by position: {name}",
        headings=("guesses", *(str(place) for place in range(1, most + 1))),
        rows=rows,
        note="A guess counts as accepted if it and all before it were right. Paper: about 97 % of the first two (8B "
        "active, 1T tokens); of another model's chain of eight 76, 62, 51, 42, 36, 31, 27, 24 %.",
    )


def speed(name: str, found: Drafted) -> Table:
    rows = []
    for way, counts in found.items():
        for length, count in counts.items():
            tokens, gain = per_pass(count), per_second(count) / per_second(counts["0"])
            rows.append(
                (
                    f"{way}, {length}",
                    f"{per_second(count):.1f}",
                    f"{gain:.2f}",
                    f"{tokens:.2f}",
                    f"{tokens / gain:.2f}",
                    "-" if length == "0" else f"{count['same']} of {count['texts']}",
                )
            )
    return Table(
        title=f"Speed by number of guesses: {name}",
        headings=("guesses", "tokens/s", "times plain", "tokens a pass", "a pass costs", "equal texts"),
        rows=rows,
        note="Paper: 3.45 tokens a pass (Super, SPEED-Bench); 2.89 times as fast at 6 guesses (Ultra, batch 1).",
    )


# Claims ------------------------------------------------------------------------------------------------------------


def claims(found: Mapping[str, Drafted]) -> list[Claim]:
    first = next(iter(found.values()))
    return [
        _falls(first),
        _several(first),
        _faster(first),
        _interior(first),
        _found(found),
        _lossless(found),
        _deeper(found),
    ]


def _falls(found: Drafted) -> Claim:
    by_place = rates(longest(found, GREEDY))
    falls = all(later <= before + SLACK for before, later in pairwise(by_place))
    return Claim(
        name="acceptance",
        says="The first guess is right more often than not, and later ones less and less often.",
        paper="about 97 % for the first two tokens (8B active, 1T tokens)",
        here=", ".join(f"{rate:.0%}" for rate in by_place) + ", greedy",
        holds=falls and by_place[0] > 0.5,
    )


def _several(found: Drafted) -> Claim:
    tokens = {way: max(map(per_pass, counts.values())) for way, counts in found.items()}
    return Claim(
        name="tokens a pass",
        says="With guesses a pass of the model gives two tokens and more.",
        paper="3.45 (Super), 4.58 greedy and 4.33 at temperature 1 (Ultra, 7 guesses)",
        here=", ".join(f"{value:.2f} {way}" for way, value in tokens.items()),
        holds=tokens[GREEDY] >= 2,
    )


def _faster(found: Drafted) -> Claim:
    best = {way: max(gains(found, way).items(), key=lambda each: each[1]) for way in found}
    return Claim(
        name="speed",
        says="Guessing writes faster than plain decoding, at batch 1.",
        paper="2.89 times at 6 guesses (Ultra, GB200)",
        here=", ".join(f"{short(gain)} times at {length} ({way})" for way, (length, gain) in best.items()),
        holds=best[GREEDY][1] > 1,
    )


def _interior(found: Drafted) -> Claim:
    gained = gains(found, GREEDY)
    best = max(gained, key=lambda length: gained[length])
    return Claim(
        name="best length",
        says="There is a best number of guesses between none and the most.",
        paper="6 of up to 7 (Ultra, batch 1)",
        here=f"{best} of up to {max(gained)}, greedy",
        holds=None if len(gained) < 3 else gained[best] > 1 and best < max(gained),
    )


def _found(found: Mapping[str, Drafted]) -> Claim:
    gained = [
        {way: per_second(counts[AUTO]) / per_second(counts["0"]) for way, counts in each.items()}
        for each in found.values()
        if all(AUTO in counts for counts in each.values())
    ]
    values = [value for each in gained for value in each.values()]
    return Claim(
        name="auto",
        says="The number of guesses found while answering is never slower than none, by more than 5 %.",
        paper="-",
        here=", ".join(f"{short(value)} times ({way})" for each in gained for way, value in each.items()),
        holds=min(values) > 0.95 if values else None,
    )


def _lossless(found: Mapping[str, Drafted]) -> Claim:
    counts = [
        count
        for each in found.values()
        for lengths in each.values()
        for length, count in lengths.items()
        if length != "0"
    ]
    same, texts = sum(count["same"] for count in counts), sum(count["texts"] for count in counts)
    return Claim(
        name="lossless",
        says="No text depends on guesses: greedy and sampled, at every length, it is that of plain decoding.",
        paper="exact by rejection sampling",
        here=f"{same} of {texts} equal token by token",
        holds=same == texts,
    )


def _deeper(found: Mapping[str, Drafted]) -> Claim:
    here, holds = "needs both models of the study", None
    if set(DEPTHS) <= set(found) and len(longest(found[next(iter(DEPTHS))], GREEDY)["offered"]) >= 3:
        tokens = {name: per_pass(longest(found[name], GREEDY)) for name in DEPTHS}
        two, one = tokens.values()
        here, holds = ", ".join(f"{value:.2f} tokens a pass, {name}" for name, value in tokens.items()), two > one
    return Claim(
        name="depth",
        says="A block trained to look 2 ahead guesses better at 3 and more than one trained to look 1 ahead.",
        paper="2 shared depths in training (Super, Ultra); further ones guessed by the same block",
        here=here,
        holds=holds,
    )


def charts(found: Mapping[str, Drafted]) -> list[LineChart]:
    def lines(values: Any) -> list[Line]:
        named = [(f"{name}, {way}", each, way) for name, each in found.items() for way in each]
        return [
            Line(name=title, points=list(values(each, way).items()), colour=number, dots=True)
            for number, (title, each, way) in enumerate(named)
        ]

    return [
        LineChart(
            title="Guesses accepted",
            x="position of the guess",
            y="share",
            lines=lines(lambda each, way: dict(enumerate(rates(longest(each, way)), start=1))),
        ),
        LineChart(
            title="Speed",
            x="guesses of a step",
            y="times plain decoding",
            lines=lines(lambda each, way: {0: 1.0} | gains(each, way)),
        ),
        LineChart(
            title="Tokens of a pass",
            x="guesses of a step",
            y="tokens",
            lines=lines(lambda each, way: {0: 1.0} | {n: per_pass(each[way][str(n)]) for n in numbers(each, way)}),
        ),
    ]
