"""Where an utterance ends in a stream that goes on: after silence, or where it has become too long.

Three rules, as users of streaming recognisers know them; the first that holds ends the utterance:

    words were heard, and then nothing for `silence_seconds`
    nothing was heard at all for `nothing_seconds`
    the utterance lasts `longest_seconds`

Nothing means steps whose most probable symbol is the blank or the space. Steps are judged one by one, so where the
sound was cut into pieces changes no end.
"""

import math
from typing import Annotated

from jaxtyping import Float
from torch import Tensor

from seqloom.core.config import Gt, Interval, config


@config
class EndpointConfig:
    """When an utterance is over, in seconds.

    Attributes:
        longest_seconds: also bounds what a stream keeps in memory.
    """

    silence_seconds: Annotated[float, Gt(0)] = 1.2
    nothing_seconds: Annotated[float, Gt(0)] = 2.4
    longest_seconds: Annotated[float, Interval(ge=0.5, le=300)] = 20.0


class Endpoint:
    """The rules, applied to the steps of one stream.

    Args:
        step_seconds: time from one step to the next.
        symbols: of the alphabet.
    """

    def __init__(self, rules: EndpointConfig, step_seconds: float, symbols: tuple[str, ...]) -> None:
        self._silence, self._nothing, self._longest = (
            max(1, math.ceil(seconds / step_seconds - 1e-6))
            for seconds in (rules.silence_seconds, rules.nothing_seconds, rules.longest_seconds)
        )
        self._silent = {label for label, symbol in enumerate(symbols) if not symbol.strip()}
        self.reset()

    def reset(self) -> None:
        """Begin a new utterance."""
        self._steps = self._quiet = 0
        self._spoken = False

    def find(self, log_probs: Float[Tensor, "T V"]) -> int | None:
        """How many of further steps belong to the utterance; None if it is not over."""
        for step, label in enumerate(log_probs.argmax(-1).tolist(), 1):
            self._steps += 1
            if label in self._silent:
                self._quiet += 1
            else:
                self._quiet, self._spoken = 0, True
            enough = self._silence if self._spoken else self._nothing
            if self._quiet >= enough or self._steps >= self._longest:
                return step
        return None
