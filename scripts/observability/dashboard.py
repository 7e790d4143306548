"""The Grafana dashboard: its panels with their queries, and Grafana's JSON of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from scripts.observability.alerts import JOB
from scripts.observability.metrics import definitions, used_in

_WIDTH: Final = 24  # of Grafana's grid
_DATASOURCE: Final = {"type": "prometheus", "uid": "${datasource}"}
_HERE: Final = 'instance=~"$instance"'
_MODEL: Final = f'{_HERE},model=~"$model"'
_WITH_EXEMPLARS: Final = "stepwell_step_seconds_bucket"
_PROCESS: Final = f'job="{JOB}",{_HERE}'


@dataclass(frozen=True, slots=True)
class Panel:
    """One panel.

    Attributes:
        title: Its title; a unit is not part of it.
        unit: Grafana's name of the unit.
        queries: PromQL by legend; `{{label}}` in a legend is replaced.
        kind: Grafana's type of the panel.
        good: For a `stat`: the value from which on it is green; below it is red. None: no colours.
    """

    title: str
    unit: str
    queries: dict[str, str]
    kind: str = "timeseries"
    good: float | None = None


def _rate(metric: str, *by: str, where: str = _HERE) -> str:
    return f"sum by ({', '.join(by)}) (rate({metric}{{{where}}}[$__rate_interval]))"


def _total(metric: str, *by: str, where: str = _HERE) -> str:
    return f"sum by ({', '.join(by)}) ({metric}{{{where}}})"


def _of_alerts(name: str, *by: str) -> str:
    """Return the rate of a counter of `stepwell alert`; 0 where it does not run."""
    return f"(sum by ({', '.join(by)}) (rate(stepwell_alert_{name}[$__rate_interval])) or vector(0))"


def _of_connectors(name: str, *by: str) -> str:
    """Return the rate of a counter of `stepwell connect`; 0 where none runs."""
    return f"(sum by ({', '.join(by)}) (rate(stepwell_connect_{name}[$__rate_interval])) or vector(0))"


def _of_sources(name: str) -> str:
    """Return a gauge of `stepwell connect` by source; 0 where none runs."""
    return f"(max by (source) (stepwell_connect_{name}) or vector(0))"


def _quantiles(metric: str, by: str, where: str) -> dict[str, str]:
    """Return the median and the 99th percentile of a histogram, by one label."""
    rate = _rate(f"{metric}_bucket", by, "le", where=where)
    return {f"p{q}, {{{{{by}}}}}": f"histogram_quantile({value}, {rate})" for q, value in (("50", 0.5), ("99", 0.99))}


def _greatest(metric: str) -> dict[str, str]:
    """Return the ten features with the greatest values; all replicas have the same ones."""
    by = "model, version, feature"
    return {"{{model}} {{version}} {{feature}}": f"topk(10, max by ({by}) ({metric}{{{_MODEL}}}))"}


def _mean(metric: str, by: str, where: str) -> str:
    return f"{_rate(f'{metric}_sum', by, where=where)} / {_rate(f'{metric}_count', by, where=where)}"


_SERVER_ERRORS: Final = (
    f'(sum(rate(stepwell_requests_total{{{_HERE},code=~"5.."}}[$__rate_interval])) or vector(0))'
    f" / sum(rate(stepwell_requests_total{{{_HERE}}}[$__rate_interval]))"
)

DASHBOARD: Final[dict[str, tuple[Panel, ...]]] = {
    "Now": (
        Panel("Replicas", "none", {"": f'sum(up{{job="{JOB}"}})'}, "stat", good=1),
        Panel("Ready", "bool_yes_no", {"": f"min(stepwell_ready{{{_HERE}}})"}, "stat", good=1),
        Panel("Store reachable", "bool_yes_no", {"": f"min(stepwell_store_reachable{{{_HERE}}})"}, "stat", good=1),
        Panel("Store safe", "bool_yes_no", {"": f"min(stepwell_store_safe{{{_HERE}}})"}, "stat", good=1),
        Panel("Durability", "none", {"{{level}}": f"count by (level) (stepwell_durability_info{{{_HERE}}})"}, "stat"),
        Panel("Versions", "none", {"{{version}}": f"count by (version) (stepwell_build_info{{{_HERE}}})"}, "stat"),
        Panel(
            "Alerts",
            "none",
            {"{{alertname}}": 'count by (alertname) (ALERTS{alertname=~"Stepwell.+",alertstate="firing"})'},
            "bargauge",
        ),
    ),
    "Requests": (
        Panel("Requests by route", "reqps", {"{{route}}": _rate("stepwell_requests_total", "route")}),
        Panel(
            "Requests by transport and status",
            "reqps",
            {"{{door}} {{code}}": _rate("stepwell_requests_total", "door", "code")},
        ),
        Panel("Share of errors of the service (5xx)", "percentunit", {"errors": _SERVER_ERRORS}),
        Panel("Errors by problem code", "reqps", {"{{code}}": _rate("stepwell_refusals_total", "code")}),
    ),
    "Timesteps": (
        Panel("Timesteps", "ops", {"{{model}}": _rate("stepwell_steps_total", "model", where=_MODEL)}),
        Panel("Duration of a timestep", "s", _quantiles("stepwell_step_seconds", "model", _MODEL)),
        Panel("Duration of a model run", "s", _quantiles("stepwell_model_run_seconds", "model", _MODEL)),
        Panel("Streams in a run", "none", {"mean, {{model}}": _mean("stepwell_batch_rows", "model", _MODEL)}),
        Panel("Waiting timesteps", "none", {"{{model}}": _total("stepwell_queue_rows", "model", where=_MODEL)}),
        Panel(
            "Conflicts and replays",
            "ops",
            {"conflicts": _rate("stepwell_conflicts_total"), "replays": _rate("stepwell_replays_total")},
        ),
    ),
    "Releases": (
        Panel(
            "Streams by version",
            "none",
            {"{{model}} {{version}}": f"max by (model, version) (stepwell_streams{{{_MODEL}}})"},
        ),
        Panel(
            "Timesteps of trials, by what the version did",
            "ops",
            {
                "{{model}} {{version}}, {{role}}": _rate(
                    "stepwell_release_steps_total", "model", "version", "role", where=_MODEL
                )
            },
        ),
        Panel("Difference to the candidate", "none", _quantiles("stepwell_release_difference", "output", _MODEL)),
        Panel(
            "Streams that left a trial",
            "ops",
            {
                "lost, in shadow": f"({_rate('stepwell_release_lost_total', where=_MODEL)} or vector(0))",
                "fell back, in a ramp": f"({_rate('stepwell_release_fell_back_total', where=_MODEL)} or vector(0))",
            },
        ),
        Panel(
            "Time since a release ended: promoted, aborted, or aborted by its gate",
            "s",
            {
                "{{model}} {{how}}": "(time() - max by (model, how) "
                f"(stepwell_release_ended_timestamp_seconds{{{_MODEL}}} > 0) or vector(0))"
            },
        ),
        Panel(
            "Gates that are not judged yet",
            "none",
            {"{{model}}": f"(max by (model) (stepwell_release_gate_waits{{{_MODEL}}}) or vector(0))"},
        ),
    ),
    "Drift": (
        Panel("PSI of the last hour, the ten greatest", "none", _greatest("stepwell_psi")),
        Panel("Share of values outside the reference's range", "percentunit", _greatest("stepwell_outside_ratio")),
        Panel("Share of missing values", "percentunit", _greatest("stepwell_missing_ratio")),
    ),
    "Alarms": (
        Panel(
            "Alarms raised and cleared",
            "none",
            {"{{rule}} {{state}}": "(sum by (rule, state) (stepwell_alert_alarms_total) or vector(0))"},
        ),
        Panel("Deliveries", "ops", {"{{target}} {{result}}": _of_alerts("deliveries_total", "target", "result")}),
        Panel(
            "Timesteps evaluated",
            "ops",
            {name: _of_alerts(f"{name}_total") for name in ("commits", "timesteps", "missed")},
        ),
        Panel(
            "Streams followed, alarms being delivered",
            "none",
            {name: f"(max(stepwell_alert_{name}) or vector(0))" for name in ("streams", "undelivered")},
        ),
        Panel("Processes that evaluate rules", "none", {"": "(sum(stepwell_alert_leads) or vector(0))"}),
    ),
    "Connectors": (
        Panel(
            "Messages and timesteps",
            "ops",
            {name: _of_connectors(f"{name}_total") for name in ("messages", "timesteps", "skipped", "predictions")},
        ),
        Panel(
            "Messages that are not applied",
            "ops",
            {
                "late, {{source}}": _of_connectors("late_total", "source"),
                "dead letters, {{code}}": _of_connectors("dead_letters_total", "code"),
            },
        ),
        Panel("Watermark behind the clock", "s", {"{{source}}": _of_sources("watermark_lag_seconds")}),
        Panel(
            "Messages that wait",
            "none",
            {
                "for the watermark, {{source}}": _of_sources("waiting"),
                "to be read, {{instance}}": "(max by (instance) (stepwell_connect_lag) or vector(0))",
            },
        ),
        Panel("Streams that went on behind a gap", "ops", {"{{source}}": _of_connectors("gaps_total", "source")}),
        Panel(
            "Connectors that read, repeated requests",
            "none",
            {name: f"(sum(stepwell_connect_{name}) or vector(0))" for name in ("reads", "retries")},
        ),
    ),
    "Store": (
        Panel("Duration of a round trip", "s", _quantiles("stepwell_store_seconds", "op", _HERE)),
        Panel(
            "Memory of the store",
            "bytes",
            {
                "used": f"max(stepwell_store_used_memory_bytes{{{_HERE}}})",
                "limit (0: none)": f"max(stepwell_store_max_memory_bytes{{{_HERE}}})",
            },
        ),
        Panel(
            "Streams whose confirmed timesteps were lost",
            "none",
            {"streams": f"sum(increase(stepwell_store_regressions_total{{{_HERE}}}[$__range]))"},
            "stat",
        ),
        Panel(
            "Share of records found in the cache",
            "percentunit",
            {
                "hits": f"{_rate('stepwell_cache_hits_total')} / "
                f"({_rate('stepwell_cache_hits_total')} + {_rate('stepwell_cache_misses_total')})"
            },
        ),
        Panel("Cached streams", "none", {"{{model}}": _total("stepwell_cached_streams", "model", where=_MODEL)}),
    ),
    "Connections": (
        Panel(
            "Open connections",
            "none",
            {"all": _total("stepwell_connections"), "WebSockets and event streams": _total("stepwell_websockets")},
        ),
        Panel("Watchers", "none", {"watchers": _total("stepwell_watchers")}),
    ),
    "Processes": (
        Panel("CPU", "cores", {"{{instance}}": _rate("process_cpu_seconds_total", "instance", where=_PROCESS)}),
        Panel(
            "Resident memory",
            "bytes",
            {"{{instance}}": _total("process_resident_memory_bytes", "instance", where=_PROCESS)},
        ),
        Panel("Open files", "none", {"{{instance}}": _total("process_open_fds", "instance", where=_PROCESS)}),
        Panel(
            "Changes of models",
            "none",
            {
                "{{change}}": f"sum by (change) (increase(stepwell_model_changes_total{{{_HERE}}}[$__rate_interval]))",
            },
        ),
        Panel(
            "Time since the start",
            "s",
            {"{{instance}}": f"time() - min by (instance) (process_start_time_seconds{{{_PROCESS}}})"},
        ),
    ),
}
"""The panels, by the row that they are in."""


def dashboard() -> dict[str, Any]:
    """Return the dashboard as Grafana reads it.

    Raises:
        ValueError: A panel uses a metric that the service does not have, or no panel uses one that it has.
    """
    shown = {metric.name for metric in used_in(query for panel in _panels() for query in panel.queries.values())}
    hidden = sorted({metric.name for metric in definitions().values()} - shown)
    if hidden:
        raise ValueError(f"No panel shows {hidden}: add each to one of `DASHBOARD`.")
    return {
        "uid": "stepwell",
        "title": "Stepwell",
        "tags": ["stepwell"],
        "schemaVersion": 39,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {"list": [_datasource_variable(), _variable("instance"), _variable("model")]},
        "panels": list(_grid()),
    }


def _panels() -> Iterator[Panel]:
    for panels in DASHBOARD.values():
        yield from panels


def _grid() -> Iterator[dict[str, Any]]:
    """Yield the panels with their places: each row of the dashboard in lines of equal panels."""
    y, number = 0, 0
    for title, panels in DASHBOARD.items():
        number += 1
        yield {
            "id": number,
            "type": "row",
            "title": title,
            "collapsed": False,
            "panels": [],
            "gridPos": {"x": 0, "y": y, "w": _WIDTH, "h": 1},
        }
        y += 1
        is_stats = all(panel.kind != "timeseries" for panel in panels)
        width, height = (_WIDTH // len(panels), 4) if is_stats else (_WIDTH // 3, 8)
        per_line = _WIDTH // width
        for i, panel in enumerate(panels):
            number += 1
            place = {"x": i % per_line * width, "y": y + i // per_line * height, "w": width, "h": height}
            yield {"id": number, **_panel(panel), "gridPos": place}
        y += -(-len(panels) // per_line) * height


def _panel(panel: Panel) -> dict[str, Any]:
    defaults: dict[str, Any] = {"unit": panel.unit, "min": 0}
    if panel.good is not None:
        steps = [{"color": "red", "value": None}, {"color": "green", "value": panel.good}]
        defaults |= {"color": {"mode": "thresholds"}, "thresholds": {"mode": "absolute", "steps": steps}}
    metrics = used_in(panel.queries.values())
    targets = [
        {
            "refId": chr(ord("A") + i),
            "datasource": _DATASOURCE,
            "expr": query,
            "legendFormat": legend or "__auto",
            **({"instant": True} if panel.kind != "timeseries" else {"range": True}),
            **({"exemplar": True} if _WITH_EXEMPLARS in query else {}),
        }
        for i, (legend, query) in enumerate(panel.queries.items())
    ]
    return {
        "type": panel.kind,
        "title": panel.title,
        "description": "\n\n".join(f"`{metric.name}`: {metric.text}" for metric in metrics),
        "datasource": _DATASOURCE,
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": {} if panel.kind == "timeseries" else {"reduceOptions": {"calcs": ["lastNotNull"]}},
        "targets": targets,
    }


def _datasource_variable() -> dict[str, Any]:
    return {"name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus"}


def _variable(label: str) -> dict[str, Any]:
    """Return a variable with the values of a label, all of which are chosen at first."""
    metric = "stepwell_queue_rows" if label == "model" else "stepwell_ready"
    return {
        "name": label,
        "label": label.capitalize(),
        "type": "query",
        "datasource": _DATASOURCE,
        "query": {"query": f"label_values({metric}, {label})", "refId": f"variable-{label}"},
        "refresh": 2,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "current": {"text": ["All"], "value": ["$__all"]},
    }
