"""What a speech server tells Prometheus: batch sizes, queue times, latencies, load."""

from typing import Any

from seqloom.core.extras import require
from seqloom.systems.deep_speech2.dispatch import Statistics


class Metrics(Statistics):
    """Statistics of the dispatcher that are also counted for Prometheus, in a registry of their own."""

    def __init__(self) -> None:
        super().__init__()
        prometheus = require("serve", "prometheus_client")
        self._prometheus = prometheus
        self._registry = prometheus.CollectorRegistry()
        times = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)

        def make(kind: str, name: str, text: str, **more: Any) -> Any:
            return getattr(prometheus, kind)(f"seqloom_speech_{name}", text, registry=self._registry, **more)

        self._batch = make("Histogram", "batch_streams", "streams in a batch", buckets=(1, 2, 4, 8, 16, 32, 64))
        self._queue = make("Histogram", "queue_seconds", "time that sound waits for its batch", buckets=times)
        self._latency = make("Histogram", "final_latency_seconds", "end of sound to final text", buckets=times)
        self._audio = make("Counter", "audio_seconds", "sound that was heard")
        self._busy = make("Counter", "busy_seconds", "time spent on hearing it")
        self._factor = make("Gauge", "real_time_factor", "time spent per second of sound")
        self._factor.set_function(lambda: self.busy_seconds / max(self.audio_seconds, 1e-9))
        self.active = make("Gauge", "active_streams", "streams and recordings under way")
        self.refused = make("Counter", "refused", "streams that were closed with an error", labelnames=("reason",))

    def on_batch(self, queued: list[float], audio_seconds: float, busy_seconds: float) -> None:
        super().on_batch(queued, audio_seconds, busy_seconds)
        self._batch.observe(len(queued))
        for seconds in queued:
            self._queue.observe(seconds)
        self._audio.inc(audio_seconds)
        self._busy.inc(busy_seconds)

    def on_end(self, latency: float) -> None:
        super().on_end(latency)
        self._latency.observe(latency)

    def written(self) -> bytes:
        """In the text format of Prometheus."""
        return self._prometheus.generate_latest(self._registry)
