"""`ProcessMetrics`: the metrics of the serving processes, under the names that every Prometheus client uses."""

from __future__ import annotations

import math
import time
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, ProcessCollector

_EVERY_S: Final = 5.0  # between two readings: one counts the open files, some milliseconds if there are 10,000


class ProcessMetrics:
    """Start time, CPU time, memory and open files, of all workers together.

    prometheus_client has these for one process only. Outside Linux they stay 0.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        """Create the metrics."""
        # `min` and the counter include workers that ended: the start does not change, and CPU time never decreases.
        self._started = Gauge(
            "process_start_time_seconds",
            "Start of the service's first worker, in seconds since 1970.",
            registry=registry,
            multiprocess_mode="min",
        )
        self._cpu = Counter("process_cpu_seconds_total", "CPU time of all workers, user and system.", registry=registry)
        self._memory = Gauge(
            "process_resident_memory_bytes",
            "Resident memory of all workers; what they share counts for each.",
            registry=registry,
            multiprocess_mode="livesum",
        )
        self._files = Gauge(
            "process_open_fds", "Open file descriptors of all workers.", registry=registry, multiprocess_mode="livesum"
        )
        self._counted_cpu_s = 0.0
        self._process = ProcessCollector(registry=None)
        self._read_at = -math.inf

    def refresh(self) -> None:
        """Read the values of this process, at most every five seconds."""
        now = time.monotonic()
        if now - self._read_at < _EVERY_S:
            return
        self._read_at = now
        found = {sample.name: sample.value for metric in self._process.collect() for sample in metric.samples}
        if not found:
            return
        self._started.set(found["process_start_time_seconds"])
        self._memory.set(found["process_resident_memory_bytes"])
        self._files.set(found["process_open_fds"])
        cpu_s = found["process_cpu_seconds_total"]
        self._cpu.inc(cpu_s - self._counted_cpu_s)
        self._counted_cpu_s = cpu_s
