"""The alerts: what is compared with which limit, for how long, and what to do about it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Literal

from scripts.observability.metrics import used_in

JOB: Final = "stepwell"
"""Name of Prometheus' scrape job; `up` and the metrics of the processes are selected by it."""


@dataclass(frozen=True, slots=True)
class Alert:
    """One alert.

    Attributes:
        name: Its name, without the prefix `Stepwell`.
        value: PromQL for the value that is compared. While the service is scraped it always has a result.
        condition: The comparison that makes the alert pending.
        wait: How long the condition has to be true before the alert fires.
        severity: `critical`: timesteps are lost or refused now; `warning`: they will be, if nobody acts.
        summary: What has happened, one sentence; Prometheus fills in `{{ }}`.
        action: What to do.
    """

    name: str
    value: str
    condition: str
    wait: str
    severity: Literal["critical", "warning"]
    summary: str
    action: str

    @property
    def expr(self) -> str:
        """The rule's PromQL."""
        return f"{self.value} {self.condition}"

    def rule(self) -> dict[str, Any]:
        """Return the rule as Prometheus' file has it."""
        return {
            "alert": f"Stepwell{self.name}",
            "expr": self.expr,
            "for": self.wait,
            "labels": {"severity": self.severity},
            "annotations": {"summary": self.summary, "description": self.action},
        }


def _refused(codes: str) -> str:
    """Return PromQL for the rate of errors with one of some problem codes; 0 if there has been none."""
    one = f'sum by (job) (rate(stepwell_refusals_total{{code=~"{codes}"}}[5m]))'
    return f"({one} or 0 * max by (job) (stepwell_ready))"


# Not `increase`: a rule's counter appears with its first alarm, which would not count.
_RAISED: Final = 'sum by (rule) (stepwell_alert_alarms_total{state="raised"})'

ALERTS: Final = (
    Alert(
        "Down",
        f'(sum(up{{job="{JOB}"}}) or vector(0))',
        "== 0",
        "1m",
        "critical",
        "No replica can be scraped.",
        "If clients are served, Prometheus finds no replica or its key lacks the scope `metrics`. Otherwise start one.",
    ),
    Alert(
        "ReplicaDown",
        f'up{{job="{JOB}"}}',
        "== 0",
        "2m",
        "warning",
        "Replica {{ $labels.instance }} cannot be scraped.",
        "Read its last log lines; the others serve its streams.",
    ),
    Alert(
        "NotReady",
        "stepwell_ready",
        "== 0",
        "1m",
        "critical",
        "Replica {{ $labels.instance }} is not ready.",
        "GET /readyz of the replica has the reasons. A replica that drains is not ready either, for seconds.",
    ),
    Alert(
        "StoreAway",
        "stepwell_store_reachable",
        "== 0",
        "30s",
        "critical",
        "Replica {{ $labels.instance }} cannot reach the store: no timestep can be applied.",
        "Check that the store runs and that the network leads to it. Clients may send refused requests again.",
    ),
    Alert(
        "StoreUnsafe",
        "stepwell_store_safe",
        "== 0",
        "30s",
        "critical",
        "The store's settings are not safe: confirmed timesteps can be lost.",
        "GET /v1/info has the reasons (`store.unsafe`): a maxmemory-policy that evicts, or too low a durability.",
    ),
    Alert(
        "StoreLostSteps",
        "increase(stepwell_store_regressions_total[15m])",
        "> 0",
        "0s",
        "critical",
        "The store has lost confirmed timesteps of {{ $value | humanize }} streams.",
        "It crashed or failed over. Clients with `seq` receive the step to continue from.",
    ),
    Alert(
        "StoreMemory",
        "(stepwell_store_used_memory_bytes / (stepwell_store_max_memory_bytes > 0) or 0 * stepwell_ready)",
        "> 0.9",
        "5m",
        "warning",
        "The store uses {{ $value | humanizePercentage }} of its memory.",
        "When it is full, timesteps are refused (store_full). Raise maxmemory, or lower stream_ttl_s.",
    ),
    Alert(
        "StoreFull",
        _refused("store_full"),
        "> 0",
        "1m",
        "critical",
        "The store is full: {{ $value | humanize }} requests a second are refused.",
        "Raise maxmemory, or delete streams.",
    ),
    Alert(
        "Errors",
        '(sum by (job) (rate(stepwell_requests_total{code=~"5.."}[5m])) or 0 * max by (job) (stepwell_ready))'
        " / sum by (job) (rate(stepwell_requests_total[5m]))",
        "> 0.01",
        "5m",
        "critical",
        "{{ $value | humanizePercentage }} of the responses are errors of the service (5xx).",
        "stepwell_refusals_total has them by problem code; the page /docs/errors of the service explains each.",
    ),
    Alert(
        "Slow",
        "histogram_quantile(0.99, sum by (model, le) (rate(stepwell_step_seconds_bucket[5m])))",
        "> 0.5",
        "10m",
        "warning",
        "One timestep in a hundred of {{ $labels.model }} takes {{ $value | humanizeDuration }} or more.",
        "Compare the durations of model runs and of the store, and the queue: the largest has the cause.",
    ),
    Alert(
        "Queue",
        "sum by (model) (stepwell_queue_rows) / sum by (model) (rate(stepwell_steps_total[1m]))",
        "> 1",
        "2m",
        "warning",
        "Timesteps of {{ $labels.model }} wait {{ $value | humanizeDuration }} for a run.",
        "More arrive than are served. Add replicas or workers.",
    ),
    Alert(
        "Overloaded",
        _refused("overloaded"),
        "> 0",
        "5m",
        "warning",
        "{{ $value | humanize }} requests a second are refused because too many wait.",
        "Add replicas or workers, or send fewer timesteps.",
    ),
    Alert(
        "Conflicts",
        "sum by (job) (rate(stepwell_conflicts_total[5m])) / sum by (job) (rate(stepwell_steps_total[5m]))",
        "> 0.05",
        "10m",
        "warning",
        "{{ $value | humanizePercentage }} of the timesteps are computed twice.",
        "Several clients or connections step the same streams at the same time: give each stream one sender.",
    ),
    Alert(
        "Drift",
        "(max by (model, version, feature) (stepwell_psi) or 0 * max by (job) (stepwell_ready))",
        "> 0.2",
        "10m",
        "warning",
        "Feature {{ $labels.feature }} of {{ $labels.model }} (version {{ $labels.version }}) has drifted: PSI "
        "{{ $value | humanize }}.",
        "`stepwell drift --model` compares it with the reference. Check the source of the feature, then the "
        'predictions; the page "Drift and data quality" of the documentation has what to do.',
    ),
    Alert(
        "ReleaseAborted",
        '(time() - max by (model) (stepwell_release_ended_timestamp_seconds{how="gate"} > 0)'
        " or Inf + max(stepwell_ready))",
        "< 900",
        "0s",
        "warning",
        "The release of {{ $labels.model }} was aborted by its gate {{ $value | humanizeDuration }} ago.",
        "`stepwell release show` has the limit that was broken. All streams continue with the old version.",
    ),
    Alert(
        "ReleaseNotJudged",
        "(max by (model) (stepwell_release_gate_waits) or 0 * max(stepwell_ready))",
        "== 1",
        "1h",
        "warning",
        "The gate of the release of {{ $labels.model }} has not been judged for an hour: too little was compared.",
        "`stepwell release show` has the number of timesteps. Raise the share of the streams, or lower min_compared.",
    ),
    Alert(
        "RulesNotEvaluated",
        "(max(stepwell_alert_leads) or 1 + 0 * max(stepwell_ready))",
        "== 0",
        "1m",
        "critical",
        "`stepwell alert` runs, but no process evaluates the rules: silent streams raise no alarm.",
        "Read the log of the alert processes: the store, or the lease, is out of their reach.",
    ),
    Alert(
        "RulesMissedSteps",
        "(sum(increase(stepwell_alert_missed_total[15m])) or 0 * max(stepwell_ready))",
        "> 0",
        "0s",
        "warning",
        "{{ $value | humanize }} timesteps were not evaluated by `stepwell alert`.",
        "The event logs did not have them any more: raise N of `--history MODEL=N`.",
    ),
    Alert(
        "StreamAlarms",
        f'({_RAISED} - (sum by (rule) (stepwell_alert_alarms_total{{state="raised"}} offset 5m) or 0 * {_RAISED})'
        " or 0 * max(stepwell_ready))",
        "> 0",
        "0s",
        "warning",
        "Rule {{ $labels.rule }} has raised {{ $value }} alarms in 5 minutes: silent streams, or its condition.",
        "The dashboard lists the alarms that are raised, and so does GET /v1/alerts.",
    ),
    Alert(
        "AlarmsNotDelivered",
        '(sum by (target) (rate(stepwell_alert_deliveries_total{result="failed"}[5m])) or 0 * max(stepwell_ready))',
        "> 0",
        "5m",
        "warning",
        "Alarms cannot be delivered to {{ $labels.target }}.",
        "They are sent again; one that is refused ten times is set aside in the store, and the command's log has the "
        "status. Check the target, and `stepwell_alert_undelivered`.",
    ),
    Alert(
        "ConnectorWaits",
        "(min by (instance) (stepwell_connect_reads) or 1 + 0 * max(stepwell_ready))",
        "== 0",
        "5m",
        "critical",
        "The connector {{ $labels.instance }} reads nothing: it waits for its broker, or for where it writes.",
        "Its log has the broker's words. Nothing is lost: it goes on where it was.",
    ),
    Alert(
        "ConnectorBehind",
        "(max by (source) (stepwell_connect_watermark_lag_seconds and stepwell_connect_waiting > 0)"
        " or 0 * max(stepwell_ready))",
        "> 900",
        "10m",
        "warning",
        "Messages of {{ $labels.source }} wait, and their times are {{ $value | humanizeDuration }} behind the clock.",
        "The connector is slower than its source, or what is sent is old: compare the rates in the dashboard.",
    ),
    Alert(
        "LateMessages",
        "(sum by (instance) (rate(stepwell_connect_late_total[15m]))"
        " / sum by (instance) (rate(stepwell_connect_messages_total[15m]) > 0) or 0 * max(stepwell_ready))",
        "> 0.05",
        "15m",
        "warning",
        "{{ $value | humanizePercentage }} of the messages of {{ $labels.instance }} are late and are not applied.",
        "Let messages wait longer for those before them (`--order`), or find the sender whose clock is wrong.",
    ),
    Alert(
        "DeadLetters",
        '(sum by (instance) (rate(stepwell_connect_dead_letters_total{code!="late"}[15m]))'
        " / sum by (instance) (rate(stepwell_connect_messages_total[15m]) > 0) or 0 * max(stepwell_ready))",
        "> 0.01",
        "15m",
        "warning",
        "{{ $value | humanizePercentage }} of the messages of {{ $labels.instance }} cannot be used.",
        "Each dead letter has its reason; `stepwell connect --check` shows what becomes of the ten oldest messages.",
    ),
    Alert(
        "Restarts",
        f'changes(process_start_time_seconds{{job="{JOB}"}}[15m])',
        "> 2",
        "0s",
        "warning",
        "Replica {{ $labels.instance }} has started {{ $value }} times in 15 minutes.",
        "Read its log: the last lines before each start have the reason. Out of memory: exit code 137.",
    ),
    Alert(
        "Versions",
        "count(count by (version) (stepwell_build_info))",
        "> 1",
        "1h",
        "warning",
        "{{ $value }} versions of the service have been running for an hour.",
        "An upgrade was not finished.",
    ),
)
"""All alerts. The first that fires is usually the cause of the others."""


def rules() -> dict[str, Any]:
    """Return Prometheus' rule file.

    Raises:
        ValueError: An alert uses a metric that the service does not have.
    """
    used_in(alert.expr for alert in ALERTS)
    return {"groups": [{"name": JOB, "rules": [alert.rule() for alert in ALERTS]}]}
