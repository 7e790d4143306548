"""The page of all metrics: kind, labels and description."""

from __future__ import annotations

import re
from pathlib import Path

from scripts.observability.metrics import definitions
from scripts.site.markdown import table

_MONITORING = Path(__file__).parents[3] / "docs" / "monitoring.md"
_HEAD = """\
# Metrics

Every metric of `GET /metrics`, in Prometheus' text format. [Monitoring](../docs/monitoring.md) explains them, and has
the dashboard and the alerts that use them.
"""


def page() -> str:
    """Return the page."""
    labels = dict(re.findall(r"^\| `(\w+)` \| ([^|]*) \|", _MONITORING.read_text(), re.MULTILINE))  # compared by tests
    found = {one.name: one for one in definitions().values()}
    rows = [(f"`{name}`", one.kind, labels.get(name, "").strip(), one.text) for name, one in found.items()]
    return f"{_HEAD}\n{table(('metric', 'kind', 'labels', 'what it is'), rows)}"
