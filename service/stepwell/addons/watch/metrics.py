"""The metric of watching."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Gauge


def watchers_gauge(registry: CollectorRegistry) -> Gauge:
    """Create the gauge of the watchers of all workers."""
    return Gauge(
        "stepwell_watchers",
        "Watchers of committed predictions.",
        registry=registry,
        multiprocess_mode="livesum",
    )
