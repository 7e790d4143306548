"""The values of the Helm chart: their defaults, what each is for, and the JSON schema that refuses any other."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Final

import yaml  # type: ignore[import-untyped]  # comes with uvicorn[standard], without types

from scripts.kubernetes.facts import default_of, limits, redis_command
from scripts.observability.alerts import JOB
from stepwell.settings import describe_settings, setting_groups

_TEXT: Final = {"type": "string"}
_NAME: Final = {"type": "string", "minLength": 1}
_SWITCH: Final = {"type": "boolean"}
_COUNT: Final = {"type": "integer", "minimum": 1}
_SECONDS: Final = {"type": "number", "minimum": 0}
_QUANTITY: Final = {"type": "string", "pattern": r"^[0-9]+(\.[0-9]+)?(m|[KMGT]i?)?$"}
_MAP: Final = {"type": "object", "additionalProperties": {"type": "string"}}
_OBJECTS: Final = {"type": "array", "items": {"type": "object"}}
_AMOUNTS: Final = {
    "type": "object",
    "additionalProperties": False,
    "properties": dict.fromkeys(("cpu", "memory", "ephemeral-storage"), _QUANTITY),
}
_RESOURCES: Final = {
    "type": "object",
    "additionalProperties": False,
    "properties": {"requests": _AMOUNTS, "limits": _AMOUNTS},
}
OWN_VALUES: Final = frozenset(
    {
        *("host", "port", "published", "data_dir"),  # the same in every pod
        *("redis", "models", "drain_s", "api_keys_file", "insecure", "production"),  # follow from other values
    }
)
"""Settings of the service that the chart sets itself."""


@dataclass(frozen=True, slots=True)
class Value:
    """One value of the chart.

    Attributes:
        path: Its keys, separated by dots.
        default: The default.
        schema: JSON schema of what is accepted.
        text: What it is for.
    """

    path: str
    default: Any
    schema: dict[str, Any]
    text: str


def _client(name: str, replicas: int, text: str) -> tuple[Value, ...]:
    """Return the values of a client of the service, which has a container of its own."""
    return (
        Value(f"{name}.enabled", False, _SWITCH, text),
        Value(f"{name}.image", "stepwell-connect", _NAME, "Its image, of the target `connect`; its tag is image.tag."),
        Value(f"{name}.replicas", replicas, _COUNT, "One works, and the others stand by for it."),
        Value(
            f"{name}.secretName",
            f"stepwell-{name}",
            _NAME,
            "The Secret with its file, what the file names (passwords, certificates), and an API key as `key`.",
        ),
        Value(
            f"{name}.resources",
            {"requests": {"cpu": "100m", "memory": "256Mi"}, "limits": limits(name)},
            _RESOURCES,
            "Of one replica.",
        ),
    )


VALUES: Final = (
    Value("image.repository", "stepwell", _NAME, "The image; push yours to a registry of your own."),
    Value("image.tag", "", _TEXT, "Empty: the version of the chart."),
    Value(
        "image.pullPolicy",
        "IfNotPresent",
        {"enum": ["Always", "IfNotPresent", "Never"]},
        "When the image is pulled.",
    ),
    Value("imagePullSecrets", [], _OBJECTS, "For a private registry: [{name: ..}]."),
    Value("replicas", 2, _COUNT, "Number of replicas, where autoscaling is off."),
    Value(
        "settings",
        {},
        {},
        "Any other setting of `stepwell serve --help`, by its name: {log_format: json}. Lists are texts separated by"
        " commas.",
    ),
    Value("extraEnv", [], _OBJECTS, "More environment variables, for example those of OpenTelemetry."),
    Value("drainSeconds", default_of("drain_s"), _SECONDS, "Seconds in which accepted requests finish after SIGTERM."),
    Value(
        "preStopSeconds",
        5,
        {"type": "integer", "minimum": 1},
        "Seconds before SIGTERM, in which load balancers remove the pod's address.",
    ),
    Value(
        "models.claim", "", _TEXT, "A PersistentVolumeClaim with models, mounted at /models. Empty: those of the image."
    ),
    Value("models.demo", False, _SWITCH, "Serve the demo's model, too."),
    Value("store.secretName", "stepwell-store", _NAME, "The Secret with the URL of your Redis."),
    Value("store.secretKey", "url", _NAME, "The key in that Secret."),
    Value("keys.secretName", "stepwell-keys", _TEXT, "The Secret with the API keys. Empty: none are needed."),
    Value("keys.secretKey", "keys.json", _NAME, "The key in that Secret: a file that `stepwell keys add` writes."),
    Value(
        "resources",
        {"requests": {"cpu": "1", "memory": "1Gi"}, "limits": limits("service")},
        _RESOURCES,
        "Of one replica. One worker uses one CPU, and more for a moment at its start.",
    ),
    Value("tmpSize", "512Mi", _QUANTITY, "For copies of the models' files."),
    Value(
        "autoscaling.enabled",
        True,
        _SWITCH,
        'A HorizontalPodAutoscaler by CPU; the page "Kubernetes" of the documentation has others.',
    ),
    Value("autoscaling.minReplicas", 2, _COUNT, "Fewest replicas."),
    Value("autoscaling.maxReplicas", 10, _COUNT, "Most replicas."),
    Value("autoscaling.cpuPercent", 70, {**_COUNT, "maximum": 100}, "Target, in percent of the CPU that is requested."),
    Value("podDisruptionBudget.enabled", True, _SWITCH, "Limit how many replicas a drain of nodes stops."),
    Value("podDisruptionBudget.maxUnavailable", 1, _COUNT, "Replicas that may be unavailable at a time."),
    Value("topologySpread.enabled", True, _SWITCH, "Spread replicas over zones and nodes."),
    Value("networkPolicy.enabled", True, _SWITCH, "Restrict who reaches the pods and what they reach."),
    Value(
        "networkPolicy.from",
        [{"podSelector": {}}, {"namespaceSelector": {"matchLabels": {"stepwell.access": "true"}}}],
        _OBJECTS,
        "Who may reach the pods: those of the same namespace, and namespaces with this label (ingress, monitoring).",
    ),
    Value("networkPolicy.storePorts", [6379], {"type": "array", "items": _COUNT}, "TCP ports of your Redis."),
    Value("networkPolicy.extraEgress", [], _OBJECTS, "More rules; for example to a receiver of traces."),
    Value("serviceMonitor.enabled", True, _SWITCH, "Needs the Prometheus Operator."),
    Value("serviceMonitor.job", JOB, _NAME, "The job of the metrics; the dashboard and the alerts rely on it."),
    Value("serviceMonitor.interval", "10s", _NAME, "Time between two scrapes."),
    Value("serviceMonitor.labels", {}, _MAP, "Labels by which your Prometheus selects it."),
    Value("serviceMonitor.keySecretName", "stepwell-metrics", _NAME, "The Secret with an API key of scope `metrics`."),
    Value("serviceMonitor.keySecretKey", "key", _NAME, "The key in that Secret."),
    Value("redis.enabled", False, _SWITCH, "Run a Redis beside the service: one pod, for development."),
    Value("redis.image", "redis:8", _NAME, "Its image; one of Valkey works, too."),
    Value(
        "redis.command",
        redis_command(),
        {"type": "array", "items": _TEXT},
        "Its program and options: those of compose.",
    ),
    Value(
        "redis.resources",
        {"requests": {"cpu": "250m", "memory": "256Mi"}, "limits": limits("redis")},
        _RESOURCES,
        "Of its pod. The limit on memory is twice its --maxmemory.",
    ),
    Value("redis.storage", "8Gi", _QUANTITY, "Size of its volume: at least three times its --maxmemory."),
    *_client("connect", 1, "A connector: `stepwell connect connect.toml`."),
    *_client("alert", 2, "Alarms: `stepwell alert rules.toml`."),
    Value("podAnnotations", {}, _MAP, "Annotations of the service's pods."),
    Value("nodeSelector", {}, _MAP, "Labels of nodes that the service's pods need."),
    Value("tolerations", [], _OBJECTS, "Taints of nodes that they tolerate."),
)

DEV: Final[dict[str, Any]] = {
    "models": {"demo": True},
    "keys": {"secretName": ""},
    "resources": {"requests": {"cpu": "250m", "memory": "512Mi"}},
    "autoscaling": {"enabled": False},
    "podDisruptionBudget": {"enabled": False},
    "topologySpread": {"enabled": False},
    "networkPolicy": {"enabled": False},
    "serviceMonitor": {"enabled": False},
    "redis": {"enabled": True},
}
"""Values for development: a Redis of its own, no keys, and nothing that a small cluster lacks."""

BASE: Final[dict[str, Any]] = {
    name: {"enabled": False}
    for name in ("autoscaling", "podDisruptionBudget", "topologySpread", "networkPolicy", "serviceMonitor")
}
"""Values of the kustomize base: what every overlay has."""


def values_file() -> str:
    """Return the text of values.yaml: each default with a comment."""
    lines: list[str] = []
    section = ""
    for value in VALUES:
        *parents, name = value.path.split(".")
        if parents and parents[0] != section:
            lines.append(f"{parents[0]}:")
        section = parents[0] if parents else ""
        indent = "  " * len(parents)
        text = yaml.safe_dump({name: value.default}, sort_keys=False, width=110)
        lines += [f"{indent}# {value.text}", *(indent + line for line in text.splitlines())]
    return "\n".join(lines) + "\n"


def schema_file() -> str:
    """Return the text of values.schema.json: unknown names and wrong types are refused."""
    root: dict[str, Any] = {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "type": "object",
        "additionalProperties": False,
        "properties": {"global": {"type": "object"}},
    }
    for value in VALUES:
        *parents, name = value.path.split(".")
        at = root["properties"]
        for parent in parents:
            new = {"type": "object", "additionalProperties": False, "properties": {}}
            at = at.setdefault(parent, new)["properties"]
        at[name] = (_settings_schema() if name == "settings" else value.schema) | {"description": value.text}
    return json.dumps(root, indent=1) + "\n"


def _settings_schema() -> dict[str, Any]:
    """Return the schema of the service's settings, of which lists are texts here and `null` is left out."""
    texts, properties = describe_settings(), dict[str, Any]()
    for group in dict.fromkeys(setting_groups().values()):
        schema = group.model_json_schema()
        properties |= {
            name: _setting_schema(field, schema.get("$defs", {})) | {"description": texts[name]}
            for name, field in schema["properties"].items()
            if name not in OWN_VALUES
        }
    return {"type": "object", "additionalProperties": False, "properties": properties}


def _setting_schema(field: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any]:
    if "anyOf" in field:
        field = next(one for one in field["anyOf"] if one.get("type") != "null")
    if "$ref" in field:
        field = definitions[field["$ref"].rpartition("/")[2]]
    if field.get("type") == "array" or field.get("format") == "path":
        return _TEXT
    kept = ("type", "enum", "minimum", "maximum", "exclusiveMinimum", "minLength", "const")
    return {key: field[key] for key in kept if key in field}
