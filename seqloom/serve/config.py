"""Settings of one request; free of torch so that the command line stays light."""

import math
from typing import Annotated

from seqloom.core.config import Ge, Interval, config
from seqloom.core.errors import ConfigError


@config
class Sampling:
    """How to choose the tokens of one request, and when to stop."""

    max_tokens: Annotated[int, Ge(1)] = 256
    """Most tokens to generate."""
    temperature: Annotated[float, Ge(0)] = 1.0
    """Divides the logits; 0 always takes the most likely token."""
    top_k: Annotated[int, Ge(0)] = 0
    """Draw only from the k most likely tokens; 0 keeps all."""
    top_p: Annotated[float, Interval(gt=0, le=1)] = 1.0
    """Draw only from the most likely tokens that together hold this probability."""
    min_p: Annotated[float, Interval(ge=0, le=1)] = 0.0
    """Draw only from tokens at least this likely, relative to the most likely one."""
    seed: Annotated[int, Ge(0)] | None = None
    """Same seed, same text. None takes a fresh seed for every request."""
    stop: tuple[str, ...] = ()
    """Texts that end the answer; they are not part of it."""

    def __post_init__(self) -> None:
        # The engine takes requests built in Python, where no file reader has checked the bounds.
        for name, allowed, holds in (
            ("max_tokens", "a whole number from 1", _whole(self.max_tokens) and self.max_tokens >= 1),
            ("temperature", "a finite number from 0", _real(self.temperature) and self.temperature >= 0),
            ("top_k", "a whole number from 0", _whole(self.top_k) and self.top_k >= 0),
            ("top_p", "a number above 0 and at most 1", _real(self.top_p) and 0 < self.top_p <= 1),
            ("min_p", "a number from 0 to 1", _real(self.min_p) and 0 <= self.min_p <= 1),
            ("seed", "a whole number from 0, or none", self.seed is None or (_whole(self.seed) and self.seed >= 0)),
            ("stop", "a tuple of texts, none of them empty", _texts(self.stop)),
        ):
            if not holds:
                raise ConfigError(f"sampling.{name}: {getattr(self, name)!r} is not allowed; it must be {allowed}")


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _real(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _texts(value: object) -> bool:
    return isinstance(value, tuple) and all(isinstance(text, str) and text for text in value)
