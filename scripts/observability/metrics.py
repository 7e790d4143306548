"""The metrics of the service, `stepwell alert` and `stepwell connect`: names, kinds and descriptions for queries."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from stepwell.addons.alert.counters import AlertCounters
from stepwell.addons.connect.counters import ConnectCounters
from stepwell.addons.drift.metrics import DriftMetrics
from stepwell.addons.releases.metrics import ReleaseMetrics
from stepwell.addons.watch.metrics import watchers_gauge
from stepwell.metrics import Metrics

_SUFFIXES = {"histogram": ("_bucket", "_sum", "_count"), "counter": ("_total",)}
_NAME = re.compile(r"\b(?:stepwell|process)_\w+")


@dataclass(frozen=True, slots=True)
class Definition:
    """One metric.

    Attributes:
        name: Its name, without the suffixes of a histogram's series.
        kind: `counter`, `gauge` or `histogram`.
        text: What it is, one sentence.
    """

    name: str
    kind: str
    text: str


def definitions() -> dict[str, Definition]:
    """Return each metric by the name of each of its series."""
    metrics = Metrics("0")
    DriftMetrics(metrics.registry, is_shared=False)
    ReleaseMetrics(metrics.registry)
    ReleaseMetrics.add_gauges(metrics)
    watchers_gauge(metrics.registry)
    registries = (AlertCounters().registry, ConnectCounters().registry)
    page = "".join([metrics.render()[0].decode(), *(generate_latest(one).decode() for one in registries)])
    found: dict[str, Definition] = {}
    for family in text_string_to_metric_families(page):
        if family.name.endswith("_created"):
            continue  # when a counter of a command was created
        name = family.name + ("_total" if family.type == "counter" else "")
        for series in (family.name + suffix for suffix in _SUFFIXES.get(family.type, ("",))):
            found[series] = Definition(name, family.type, family.documentation)
    return found


def used_in(queries: Iterable[str]) -> list[Definition]:
    """Return the metrics that PromQL queries use, in their order.

    Raises:
        ValueError: A query uses a metric that the service does not have.
    """
    known = definitions()
    series = [name for query in queries for name in _NAME.findall(query)]
    unknown = sorted({name for name in series if name not in known})
    if unknown:
        raise ValueError(f"The service has no metrics {unknown}; it has {sorted(known)}.")
    return list({known[name].name: known[name] for name in series}.values())
