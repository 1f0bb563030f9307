"""How long a gate lasts: a taste in `make test`, the whole of it with SEQLOOM_SOAK=1 (`make soak`)."""

import os

SOAKING = os.environ.get("SEQLOOM_SOAK") == "1"


def soak(quick: int, full: int) -> int:
    """How often to do what one can do as often as one likes."""
    return full if SOAKING else quick
