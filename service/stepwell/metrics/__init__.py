"""Metrics for Prometheus.

service_metrics.py  `Metrics`: all of them, and what the engine and the transports call
exemplars.py        traced requests, by the buckets of a histogram
exposition.py       the metrics as text
releases.py         the metrics of releases
process.py          CPU time, memory and files of the processes
shared_folder.py    where several workers share their values
"""

from stepwell.metrics.exposition import CONTENT_TYPE, OPENMETRICS
from stepwell.metrics.service_metrics import NO_ROUTE, Metrics, ModelCounts

__all__ = ["CONTENT_TYPE", "NO_ROUTE", "OPENMETRICS", "Metrics", "ModelCounts"]
