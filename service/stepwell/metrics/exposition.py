"""The metrics as text, in Prometheus' format or in that of OpenMetrics, which has exemplars."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Final

from prometheus_client import generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.registry import Collector

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
"""Media type of the text format, which every version of Prometheus accepts."""

OPENMETRICS: Final = "application/openmetrics-text"
"""Media type of the format of OpenMetrics, without its parameters."""

_OPENMETRICS_1: Final = f"{OPENMETRICS}; version=1.0.0; charset=utf-8"
_OIP: Final = "stepwell_oip_"  # metrics for the statistics of the Open Inference Protocol alone: not exposed


Attach = Callable[[Metric], None]


def exposed(collector: Collector, attach: Iterable[Attach], *, as_openmetrics: bool) -> tuple[bytes, str]:
    """Return the text of the metrics, and its media type.

    Args:
        collector: Yields all metrics.
        attach: Called with each metric in the format of OpenMetrics, to add exemplars; the text format has none.
        as_openmetrics: In the format of OpenMetrics; else in Prometheus' text format.
    """
    if as_openmetrics:
        public = _PublicMetrics(collector, attach)
        return openmetrics.generate_latest(public), _OPENMETRICS_1  # type: ignore[no-untyped-call]  # has no types
    return generate_latest(_PublicMetrics(collector)), CONTENT_TYPE


class _PublicMetrics(Collector):
    """The metrics without those of the Open Inference Protocol's statistics, and without the `_created` series.

    The latter would double the output, and workers that share a folder do not have them.
    """

    def __init__(self, collector: Collector, attach: Iterable[Attach] = ()) -> None:
        self._collector = collector
        self._attach = attach

    def collect(self) -> Iterator[Metric]:
        for metric in self._collector.collect():
            if metric.name.startswith(_OIP):
                continue
            metric.samples = [sample for sample in metric.samples if not sample.name.endswith("_created")]
            for attach in self._attach:
                attach(metric)
            yield metric
