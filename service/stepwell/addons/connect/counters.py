"""`ConnectCounters`: what a connector has done so far, for its live line, `--json` and Prometheus."""

from __future__ import annotations

import time
from collections import Counter as Counts
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge


class ConnectCounters:
    """Counts since the connector started.

    Attributes:
        registry: The same as metrics for Prometheus.
        reads: Whether the connector has everything open that it reads and writes.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.registry = CollectorRegistry()
        self.reads = False
        self._clock = clock
        self._started = self._last_at = clock()
        self._last_messages = 0
        self._values = dict.fromkeys(("messages", "timesteps", "skipped", "late", "predictions", "gaps"), 0)
        self._n_waiting = 0
        self._letters: dict[str, int] = {}
        self._lag: int | None = None
        self._retries: Callable[[], int] = lambda: 0
        self._late = Counter(
            "stepwell_connect_late", "Timesteps that were not applied: a newer one of their stream came before.",
            ["source"], registry=self.registry,
        )  # fmt: skip
        texts = {
            "messages": "Messages that were read.",
            "timesteps": "Timesteps that were applied.",
            "skipped": "Timesteps that had been applied before, by their positions.",
            "predictions": "Predictions that were written.",
        }
        self._counters = {
            name: Counter(f"stepwell_connect_{name}", text, registry=self.registry) for name, text in texts.items()
        }
        self._dead = Counter(
            "stepwell_connect_dead_letters", "Messages that could not be used.", ["code"], registry=self.registry
        )
        self._gaps = Counter(
            "stepwell_connect_gaps", "Streams that went on behind a silence longer than --gap.", ["source"],
            registry=self.registry,
        )  # fmt: skip
        self._waiting = Gauge(
            "stepwell_connect_waiting", "Messages that wait for the watermark.", ["source"], registry=self.registry
        )
        self._watermark_lag = Gauge(
            "stepwell_connect_watermark_lag_seconds", "How far the watermark is behind the connector's clock.",
            ["source"], registry=self.registry,
        )  # fmt: skip
        self._lag_gauge = Gauge(
            "stepwell_connect_lag", "Messages that are not read yet, as far as the broker reports it.",
            registry=self.registry,
        )  # fmt: skip
        reads = Gauge(
            "stepwell_connect_reads", "1: source and targets are open; 0: the connector waits for one of them.",
            registry=self.registry,
        )  # fmt: skip
        reads.set_function(lambda: float(self.reads))
        retries = Gauge("stepwell_connect_retries", "Repeated requests to the service.", registry=self.registry)
        retries.set_function(lambda: float(self._retries()))

    def watch_retries(self, retries: Callable[[], int]) -> None:
        """Report what a function returns as the number of repeated requests."""
        self._retries = retries

    def add(self, **counts: int) -> None:
        """Add to `messages`, `timesteps`, `skipped` or `predictions`."""
        for name, count in counts.items():
            self._values[name] += count
            self._counters[name].inc(count)

    def add_late(self, sources: Iterable[str]) -> None:
        """Count timesteps that are late, by the source of each."""
        for source, count in Counts(sources).items():
            self._values["late"] += count
            self._late.labels(source).inc(count)

    def add_gap(self, source: str) -> None:
        """Count a stream that went on behind a silence, by its source."""
        self._values["gaps"] += 1
        self._gaps.labels(source).inc()

    def set_waiting(self, waiting: Mapping[str, int], lags: Mapping[str, float]) -> None:
        """Set how many messages wait, and how many seconds the watermark is behind this clock, by source."""
        self._waiting.clear()  # a partition may be another connector's by now
        self._watermark_lag.clear()
        for source, n in waiting.items():
            self._waiting.labels(source).set(n)
        for source, seconds in lags.items():
            self._watermark_lag.labels(source).set(seconds)
        self._n_waiting = sum(waiting.values())

    def add_dead_letter(self, code: str) -> None:
        """Count a message that could not be used."""
        self._letters[code] = self._letters.get(code, 0) + 1
        self._dead.labels(code).inc()

    def set_lag(self, lag: int | None) -> None:
        """Set the number of messages that are not read yet."""
        self._lag = lag
        if lag is not None:
            self._lag_gauge.set(lag)

    def report(self) -> dict[str, Any]:
        """Return all counts, and the rate since the last report."""
        now, messages = self._clock(), self._values["messages"]
        rate = (messages - self._last_messages) / max(now - self._last_at, 1e-9)
        self._last_at, self._last_messages = now, messages
        return {
            **self._values,
            "dead_letters": sum(self._letters.values()),
            "dead_letter_codes": dict(self._letters),
            "lag": self._lag,
            "waiting": self._n_waiting,
            "retries": self._retries(),
            "messages_per_s": round(rate, 1),
            "seconds": round(now - self._started, 3),
        }
