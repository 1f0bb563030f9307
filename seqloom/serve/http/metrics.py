"""What a language-model server tells Prometheus: load, tokens, times, caches, drafting."""

from typing import Any, NamedTuple

from seqloom.core.extras import require

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_ENDS = 64
"""Answers that are counted together."""
TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1)

_GAUGES = {
    "rows_running": "requests that are being answered",
    "rows_waiting": "requests that wait in the engine",
    "pages": "pages of the cache",
    "pages_free": "pages that no request holds",
    "pages_remembered": "those of them that hold what was computed before",
}
_COUNTERS = {
    "prefix_hit_tokens": "prompt tokens found in the cache",
    "prefix_query_tokens": "prompt tokens looked for in the cache",
    "preemptions": "requests that had to give up their memory for a while",
}


class End(NamedTuple):
    """How an answer ended; times in seconds from its request on."""

    outcome: str
    seconds: float
    first_token: float | None
    usage: dict[str, int] | None


class Metrics:
    """Counts what happens at the front, and passes on what the engine says of itself."""

    def __init__(self) -> None:
        prometheus = require("serve", "prometheus_client")
        self._write = prometheus.generate_latest
        self._registry = prometheus.CollectorRegistry()

        def make(kind: str, name: str, text: str, *labels: str, **more: Any) -> Any:
            return getattr(prometheus, kind)(f"seqloom_{name}", text, labels, registry=self._registry, **more)

        self.requests = make("Counter", "requests", "requests by how they ended", "outcome")
        self.prompt_tokens = make("Counter", "prompt_tokens", "tokens of prompts that were answered")
        self.answer_tokens = make("Counter", "answer_tokens", "tokens of answers")
        self.first_token = make("Histogram", "first_token_seconds", "request to first token", buckets=SECONDS)
        self.per_token = make("Histogram", "token_seconds", "mean time of a further token", buckets=TOKEN_SECONDS)
        self.duration = make("Histogram", "request_seconds", "request to end of its answer", buckets=SECONDS)
        self.places = make("Gauge", "places_taken", "requests under way or waiting, of all that may be")
        self.restarts = make("Counter", "engine_restarts", "engines that ended and were started again")
        self._gauges = {name: make("Gauge", name, text) for name, text in _GAUGES.items()}
        self._counters = {name: make("Counter", name, text) for name, text in _COUNTERS.items()}
        self._drafts = {
            name: make("Counter", f"{name}_tokens", f"guessed tokens {text}, by place after the newest", "place")
            for name, text in (("drafted", "that were checked"), ("accepted", "that were right"))
        }
        self._states = {
            "prefix_reuse": make("Gauge", "prefix_reuse", "if prompts are found in the cache, or why not", "state"),
            "graphs": make("Gauge", "graphs", "whether steps are recorded as CUDA graphs, or why not", "state"),
        }
        self._seen: dict[Any, int] = {}
        self.tokens = 0
        """Of answers, as far as they are not counted yet: a counter's lock is not taken for every one."""
        self._ends: list[End] = []

    def on_statistics(self, statistics: dict[str, Any]) -> None:
        """Take over what the engine counted since it said so last."""
        for name, gauge in self._gauges.items():
            gauge.set(statistics[name])
        for name, counter in self._counters.items():
            self._advance(counter, name, statistics[name])
        for name, gauge in self._states.items():
            gauge.clear()
            gauge.labels(statistics[name]).set(1)
        for name, counters in self._drafts.items():
            for place, count in enumerate(statistics[name], start=1):
                self._advance(counters.labels(place), (name, place), count)

    def on_end(self, end: End) -> None:
        """An answer ended. It is counted with others, since at this moment a client waits for the last of it."""
        self._ends.append(end)
        if len(self._ends) >= _ENDS:
            self._settle()

    def on_restart(self) -> None:
        """A new engine counts from nothing."""
        self.restarts.inc()
        self._seen.clear()

    def written(self) -> bytes:
        """In the text format of Prometheus."""
        self.answer_tokens.inc(self.tokens)
        self.tokens = 0
        self._settle()
        written: bytes = self._write(self._registry)
        return written

    def _settle(self) -> None:
        ends, self._ends = self._ends, []
        for outcome, seconds, first_token, usage in ends:
            self.requests.labels(outcome).inc()
            self.duration.observe(seconds)
            if usage and first_token is not None:
                self.prompt_tokens.inc(usage["prompt_tokens"])
                self.first_token.observe(first_token)
                if (further := usage["completion_tokens"] - 1) > 0:
                    self.per_token.observe((seconds - first_token) / further)

    def _advance(self, counter: Any, name: Any, count: int) -> None:
        counter.inc(max(0, count - self._seen.get(name, 0)))
        self._seen[name] = count
