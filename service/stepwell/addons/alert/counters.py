"""`AlertCounters`: what an alert process has done so far, for its live line, `--json` and Prometheus."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final

from prometheus_client import CollectorRegistry, Counter, Gauge

from stepwell.addons.alert.stream_state import Alarm

_COUNTS: Final[Mapping[str, str]] = {
    "commits": "Commits that were evaluated.",
    "timesteps": "Timesteps that were evaluated.",
    "missed": "Timesteps that were not evaluated, because the event log did not have them any more.",
}


class AlertCounters:
    """Counts since the process started.

    Attributes:
        registry: The same as metrics for Prometheus.
        leads: Whether this process evaluates the rules; otherwise it stands by.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.registry = CollectorRegistry()
        self.leads = False
        self._started, self._clock = clock(), clock
        self._values = dict.fromkeys((*_COUNTS, "raised", "cleared", "delivered", "failed_deliveries", "refused"), 0)
        self._gauges: dict[str, Callable[[], int]] = {"streams": lambda: 0, "undelivered": lambda: 0}
        self._counters = {
            name: Counter(f"stepwell_alert_{name}", text, registry=self.registry) for name, text in _COUNTS.items()
        }
        self._alarms = Counter(
            "stepwell_alert_alarms", "Alarms that were raised or cleared.", ["rule", "state"], registry=self.registry
        )
        self._deliveries = Counter(
            "stepwell_alert_deliveries",
            "Attempts to deliver alarms, by target and result; refused: alarms that were set aside.",
            ["target", "result"],
            registry=self.registry,
        )  # fmt: skip
        leads = Gauge("stepwell_alert_leads", "1: this process evaluates the rules; 0: it stands by.",
                      registry=self.registry)  # fmt: skip
        leads.set_function(lambda: float(self.leads))
        for name, text in (
            ("streams", "Streams that are followed."),
            ("undelivered", "Alarms that are being delivered."),
        ):
            gauge = Gauge(f"stepwell_alert_{name}", text, registry=self.registry)
            gauge.set_function(partial(self._value, name))

    def bind(self, *, streams: Callable[[], int], undelivered: Callable[[], int]) -> None:
        """Report what these functions return."""
        self._gauges = {"streams": streams, "undelivered": undelivered}

    def add(self, **counts: int) -> None:
        """Add to `commits`, `timesteps` or `missed`."""
        for name, count in counts.items():
            self._values[name] += count
            self._counters[name].inc(count)

    def add_alarm(self, alarm: Alarm) -> None:
        """Count an alarm."""
        self._values[alarm.state] += 1
        self._alarms.labels(alarm.rule, alarm.state).inc()

    def add_delivery(self, target: str, *, delivered: int = 0, failed: int = 0, refused: int = 0) -> None:
        """Count attempts to deliver alarms to a target, and the alarms that were set aside because it refuses them."""
        self._values["delivered"] += delivered
        self._values["failed_deliveries"] += failed
        self._values["refused"] += refused
        for result, count in (("delivered", delivered), ("failed", failed), ("refused", refused)):
            if count:
                self._deliveries.labels(target, result).inc(count)

    def _value(self, name: str) -> float:
        return float(self._gauges[name]())

    def report(self) -> dict[str, Any]:
        """Return all counts."""
        gauges = {name: value() for name, value in self._gauges.items()}
        return {"leads": self.leads, **self._values, **gauges, "seconds": round(self._clock() - self._started, 3)}
