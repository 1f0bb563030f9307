"""What an engine has done so far and how full it is now."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class EngineStatistics:
    """A look at an engine between two turns; sums count from its beginning."""

    rows_running: int
    """Answers that get a token in every turn."""
    rows_waiting: int
    """Requests whose prompt is not read yet."""
    pages: int
    """All pages of keys and values."""
    pages_free: int
    """Pages that no row holds; remembered prefixes hold some of them and give them up when they are needed."""
    pages_remembered: int
    """Pages that prefixes alone hold."""
    prefix_reuse: str
    """on, off, or why prefixes cannot be remembered."""
    prefix_query_tokens: int
    """Tokens of prompts that were looked up."""
    prefix_hit_tokens: int
    """Those of them that need not be computed."""
    preemptions: int
    """Rows that gave their pages back and are computed again."""
    drafted: list[int]
    """Guesses by place after the newest token."""
    accepted: list[int]
    """Those of them that were right, as all before them."""
    graphs: str
    """on, with the number of decode steps that were recorded, or off and why."""
    tokens_in: int
    """Of all prompts taken."""
    tokens_out: int
    """Drawn."""
