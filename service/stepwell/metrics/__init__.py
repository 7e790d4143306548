"""Metrics for Prometheus.

service_metrics.py  `Metrics`: all of them, and what the engine and the transports call
exposition.py       the metrics as text
process.py          CPU time, memory and files of the processes
shared_folder.py    where several workers share their values
"""

from stepwell.metrics.exposition import CONTENT_TYPE, OPENMETRICS
from stepwell.metrics.service_metrics import NO_ROUTE, SECONDS, Metrics

__all__ = ["CONTENT_TYPE", "NO_ROUTE", "OPENMETRICS", "SECONDS", "Metrics"]
