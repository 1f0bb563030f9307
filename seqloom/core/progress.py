"""How slow preparations say how far they are."""

from collections.abc import Callable

Progress = Callable[[str, float], None]
"""Called with a stage in words and the share of it that is done (0 to 1)."""
