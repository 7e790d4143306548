"""Kinds of metrics: children by their labels, and histograms that buffer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final, Generic, TypeVar

import numpy as np
from prometheus_client import Histogram
from prometheus_client.metrics import MetricWrapperBase

_BUFFERED_MAX: Final = 4096  # values that a histogram buffers before it counts them

_M = TypeVar("_M", bound=MetricWrapperBase)


class Labelled(dict[tuple[str, ...], _M], Generic[_M]):
    """A metric's children by their labels. A dict, because `labels()` acquires a lock and checks names on each call."""

    def __init__(self, metric: _M) -> None:
        super().__init__()
        self._metric = metric

    def __missing__(self, labels: tuple[str, ...]) -> _M:
        child = self[labels] = self._metric.labels(*labels)
        return child

    def remove(self, children: Iterable[tuple[str, ...]]) -> None:
        """Remove children and their values."""
        for labels in children:
            del self[labels]
            self._metric.remove(*labels)


class BufferedHistogram(Histogram):
    """A histogram that buffers values and counts many at once: counting one would cost as much as a part of a step."""

    def _metric_init(self) -> None:
        super()._metric_init()
        self._values: list[float] = []

    def buffer(self, amounts: Sequence[float]) -> None:
        """Buffer values, which are not visible before `flush`."""
        self._values += amounts
        if len(self._values) >= _BUFFERED_MAX:
            self.flush()

    def flush(self) -> None:
        """Count the buffered values."""
        amounts, self._values = self._values, []
        if not amounts:
            return
        self._sum.inc(sum(amounts))
        counts = np.bincount(np.searchsorted(self._upper_bounds, amounts))  # bounds are inclusive in Prometheus
        for bucket in np.flatnonzero(counts).tolist():
            self._buckets[bucket].inc(int(counts[bucket]))
