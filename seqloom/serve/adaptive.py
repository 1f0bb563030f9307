"""How far to guess ahead: as far as brings the most tokens a second, by what was measured.

    expected tokens of a step = 1 + a_1 + a_1 a_2 + ... + a_1 ... a_k

divided by the measured seconds of steps of so many rows and guesses; a_j says how often guess j is right if those
before it are. A length that was not measured a few times yet is estimated from shorter ones: the first guess to cost a
quarter of a plain step, the second half of what the first did, others what one did before. So a length is tried where
it would pay, and a handful of steps tell that nothing does. Now and then a neighbour of the best is measured again, for
some steps; the longer a length has been the best, the less often. The choice never changes a text (`drafting`), so it
may depend on the clock.
Paper: post-training notes on speculative decoding, break-even of drafting.
"""

_SMOOTHING = 0.1
"""Of measured seconds."""
_CHANCE_SMOOTHING = 0.05
"""Of how often a guess is right: one that is says little, and a length given up by mistake waits for the next look."""
_SOON, _LATE = 24, 384
"""Steps before a look at a neighbour of a length that has just become the best, and of one that has long been."""
_LOOK = 3
"""Steps of a look, and measurements of a length before they are believed."""
_FIRST = 6
"""Those of the first guess, with which all stands or falls."""
_HOPELESS = 4
"""Those of a guess that would not pay if it were always right; the first is of a cold start."""
_FIRST_PRICE, _SECOND_PRICE = 0.25, 0.5
"""What a guess is taken to cost before it was measured: the first in plain steps, the second in first ones."""
_WORTH = 1.03
"""Times as fast as without guesses they have to be."""


class DraftLength:
    """Chooses how many tokens to guess.

    Args:
        most: guesses of one step.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._right = [0.7] * most
        self._times: dict[tuple[int, int], list[float]] = {}  # seconds, and how often measured
        self._idle: dict[int, bool] = {}
        self._best, self._direction = 0, -1
        self._wait = self._left = _SOON

    def none_pays(self, rows: int) -> bool:
        """Whether guesses were found not to pay with so many rows, nor with one, where they pay the most."""
        return self._idle.get(_size(rows), False) and self._idle.get(1, False)

    def look(self) -> None:
        """Have the next steps measure again whether a guess pays, if none does now."""
        if self._best == 0:
            self._left, self._direction = 0, 1

    def choose(self, rows: int) -> int:
        """The length for the next step of so many rows."""
        plain = self._known(rows, 0)
        if plain is None:
            return 0
        rates, seconds = [_WORTH / plain], plain
        expected, chance, price = 1.0, 1.0, _FIRST_PRICE * plain
        for length in range(1, self._most + 1):
            chance *= self._right[length - 1]
            expected += chance
            measured = self._known(rows, length)
            if measured is None:
                rates.append(expected / (seconds + price))
                break
            price = _SECOND_PRICE * (measured - plain) if length == 1 else max(0.0, measured - seconds)
            seconds = max(seconds, measured)
            rates.append(expected / seconds)
        chosen = self._or_beside(max(range(len(rates)), key=rates.__getitem__))
        self._idle[_size(rows)] = self._best == chosen == 0
        return chosen

    def _known(self, rows: int, length: int) -> float | None:
        seconds, count = self._times.get((_size(rows), length), (0.0, 0))
        enough = _LOOK
        if length == 1:
            plain, _ = self._times[_size(rows), 0]
            enough = _HOPELESS if _WORTH * seconds > 2 * plain else _FIRST
        return seconds if count >= enough else None

    def _or_beside(self, best: int) -> int:
        """The best length, or while a look lasts one beside it."""
        if best != self._best:
            self._best, self._wait = best, _SOON
            self._left = min(self._left, _SOON) if self._left > 0 else _SOON
        if self._left == -_LOOK:
            self._left = self._wait = min(2 * self._wait, _LATE)
            self._direction = -self._direction
        self._left -= 1
        if self._left >= 0:
            return best
        return min(max(best + self._direction, 0 if best else 1), self._most)

    def count(self, guessed: int, right: int) -> None:
        """Take in that so many of the guesses of a row were right, up to the first wrong one."""
        for place in range(min(guessed, right + 1)):
            self._right[place] += _CHANCE_SMOOTHING * ((place < right) - self._right[place])

    def time(self, rows: int, length: int, seconds: float) -> None:
        """Take in how long a step took."""
        size = _size(rows)
        time = self._times.setdefault((size, length), [seconds, 0])
        time[1] += 1
        # Interruptions make steps look slow and never fast: what was quick is believed sooner.
        if seconds < time[0]:
            time[0] += (1.0 if time[1] <= _LOOK else 0.5) * (seconds - time[0])
        elif time[1] > _LOOK:
            time[0] += _SMOOTHING * (min(seconds, 1.5 * time[0]) - time[0])
        for shorter in range(length):  # takes no longer; one slow look at it must not make all others seem cheap
            if (other := self._times.get((size, shorter))) is not None:
                other[0] = min(other[0], time[0])


def _size(rows: int) -> int:
    """Numbers of rows that cost about the same."""
    return rows.bit_length()
