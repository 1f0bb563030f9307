"""How far to guess ahead: as far as brings the most tokens a second, by what was measured.

    expected tokens of a step = 1 + a_1 + a_1 a_2 + ... + a_1 ... a_k

divided by the measured seconds of steps of so many rows and guesses; a_j says how often guess j is right if those
before it are. A length not measured yet passes for as fast as the next shorter one, so it is tried when that would pay;
now and then a neighbour of the best is measured again. The choice never changes a text (`drafting`), so it may depend
on the clock.
Paper: post-training notes on speculative decoding, break-even of drafting.
"""

_SMOOTHING = 0.1
_LOOK_AROUND = 24
"""Steps between two looks at a neighbour of the best length."""


class DraftLength:
    """Chooses how many tokens to guess.

    Args:
        most: guesses of one step.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._right = [0.7] * most
        self._seconds: dict[tuple[int, int], float] = {}
        self._steps = 0

    def choose(self, rows: int) -> int:
        """The length for the next step of so many rows."""
        rates, seconds = [], self._seconds.get((_size(rows), 0), 1.0)
        expected, chance = 1.0, 1.0
        for length in range(self._most + 1):
            if length:
                chance *= self._right[length - 1]
                expected += chance
            seconds = max(seconds, self._seconds.get((_size(rows), length), 0.0))
            rates.append(expected / seconds)
            if (_size(rows), length) not in self._seconds:
                break
        best = max(range(len(rates)), key=rates.__getitem__)
        self._steps += 1
        if self._steps % _LOOK_AROUND == 0:
            best += 1 if self._steps % (2 * _LOOK_AROUND) or best == 0 else -1
        return min(best, self._most)

    def count(self, guessed: int, right: int) -> None:
        """Take in that so many of the guesses of a row were right, up to the first wrong one."""
        for place in range(min(guessed, right + 1)):
            self._right[place] += _SMOOTHING * ((place < right) - self._right[place])

    def time(self, rows: int, length: int, seconds: float) -> None:
        """Take in how long a step took."""
        key = _size(rows), length
        known = self._seconds.get(key, seconds)
        # Interruptions make steps look slow and never fast: what was quick is believed sooner.
        change = 0.5 * (seconds - known) if seconds < known else _SMOOTHING * (min(seconds, 1.5 * known) - known)
        self._seconds[key] = known + change
        for shorter in range(length):  # takes no longer; one slow look at it must not make all others seem cheap
            if self._seconds.get((key[0], shorter), 0.0) > self._seconds[key]:
                self._seconds[key[0], shorter] = self._seconds[key]


def _size(rows: int) -> int:
    """Numbers of rows that cost about the same."""
    return rows.bit_length()
