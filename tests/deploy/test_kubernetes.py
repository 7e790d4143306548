"""The Kubernetes manifests: kustomize and Helm give the same objects, and these fit the schemas of Kubernetes."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]  # comes with uvicorn[standard], without types

from scripts.kubernetes.__main__ import COMPONENTS, KUSTOMIZE, OVERLAYS, chart_files, kustomize_files
from scripts.kubernetes.chart import FOLDER as CHART
from scripts.kubernetes.chart import render
from scripts.kubernetes.facts import REPOSITORY, container, default_of, version
from scripts.kubernetes.kustomize import difference
from scripts.kubernetes.values import OWN_VALUES
from scripts.observability.metrics import used_in
from stepwell.settings import PREFIX, setting_groups
from tests.deploy.manifests import Objects, by_name, kustomize, needs_helm, needs_kubectl, needs_schemas, of_overlay

VERSIONS = ("1.32", "1.35", "1.37")
MANIFESTS = sorted(KUSTOMIZE.rglob("*.yaml"))
OTHERS = frozenset({"monitoring.coreos.com/v1"})  # no part of Kubernetes
BLOCKS = re.findall(r"^```yaml\n(.*?)^```", (REPOSITORY / "docs/kubernetes.md").read_text(), re.DOTALL | re.MULTILINE)
ALL_VALUES: dict[str, Any] = {
    "image": {"repository": "registry.example/stepwell", "tag": "1"},
    "imagePullSecrets": [{"name": "registry"}],
    "settings": {
        "grpc_port": 8001,
        "log_format": "json",
        "max_body_bytes": 16777216,
        "watch_models": True,
        "max_wait_ms": 0.5,
    },
    "extraEnv": [{"name": "OTEL_SERVICE_NAME", "value": "stepwell"}],
    "models": {"claim": "models", "demo": True},
    "redis": {"enabled": True},
    "podAnnotations": {"a": "b"},
    "nodeSelector": {"disk": "fast"},
    "tolerations": [{"key": "k", "operator": "Exists"}],
    "networkPolicy": {"extraEgress": [{"ports": [{"port": 443, "protocol": "TCP"}]}]},
    "serviceMonitor": {"labels": {"release": "prometheus"}},
}
"""Every optional part of the chart that is one of the service."""
CLIENTS: dict[str, Any] = {name: {"enabled": True} for name in COMPONENTS}
"""The clients of the service that the chart and kustomize may add."""


def pod(objects: Objects, kind: str = "Deployment") -> dict[str, Any]:
    """Return the pod of the only object of a kind."""
    [found] = [one["spec"]["template"]["spec"] for (its_kind, _), one in objects.items() if its_kind == kind]
    assert isinstance(found, dict)
    return found


def on_disk(name: str) -> Objects:
    """Return the objects of the files of one folder of kustomize."""
    files = [yaml.safe_load(path.read_text()) for path in MANIFESTS if path.parent == KUSTOMIZE / name]
    return by_name([one for one in files if one["kind"] != "Kustomization"])


BASE = on_disk("base")
DEV = on_disk("overlays/dev")
SERVICE = pod(BASE)
REDIS = pod(DEV, "StatefulSet")
[SERVICE_CONTAINER] = SERVICE["containers"]
[REDIS_CONTAINER] = REDIS["containers"]


def test_the_files_of_the_chart_are_what_the_script_writes() -> None:
    written = chart_files()

    assert {path: path.read_text() for path in written} == written, "run: python -m scripts.kubernetes"


@needs_helm
def test_the_files_of_kustomize_are_what_the_script_writes() -> None:
    written = kustomize_files()

    assert {path: path.read_text() for path in MANIFESTS} == written, "run: python -m scripts.kubernetes"


@needs_kubectl
@needs_helm
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_helm_and_kustomize_give_the_same_objects(overlay: str) -> None:
    assert of_overlay(overlay) == by_name(render(OVERLAYS[overlay]))


@needs_kubectl
def test_the_production_overlay_has_all_that_it_promises_and_an_autoscaler_alone_sets_the_replicas() -> None:
    objects = of_overlay("prod")
    kinds = {kind for kind, _ in objects}

    assert kinds == {
        *("Deployment", "Service", "HorizontalPodAutoscaler", "PodDisruptionBudget", "NetworkPolicy"),
        "ServiceMonitor",
    }
    assert "replicas" not in objects["Deployment", "stepwell"]["spec"]


@needs_schemas
@needs_helm
@pytest.mark.parametrize("kubernetes", VERSIONS)
def test_the_overlays_and_every_optional_part_of_the_chart_fit_the_strict_schemas(kubernetes: str) -> None:
    for values in (*OVERLAYS.values(), ALL_VALUES | CLIENTS):
        check_schemas(render(values), kubernetes)


@needs_schemas
def test_a_misspelt_field_does_not_fit_the_schemas() -> None:
    import kubernetes_validate

    wrong = BASE["Deployment", "stepwell"] | {"spec": BASE["Deployment", "stepwell"]["spec"] | {"replicaz": 2}}

    with pytest.raises(kubernetes_validate.ValidationError, match="replicaz"):
        check_schemas([wrong], VERSIONS[0])


@needs_helm
def test_helm_finds_nothing_wrong_in_the_chart() -> None:
    from helm_python import lint

    report = lint(CHART, ALL_VALUES | CLIENTS, strict=True)

    assert [message for message in report["messages"] if "icon is recommended" not in message["error"]] == []


@needs_helm
@pytest.mark.parametrize(
    ("values", "found"),
    [
        ({"replica": 3}, "replica"),
        ({"replicas": "3"}, "replicas"),
        ({"resources": {"limits": {"memory": "2 GB"}}}, "memory"),
        ({"settings": {"log_fromat": "json"}}, "log_fromat"),
        ({"settings": {"max_batch_size": 0}}, "max_batch_size"),
    ],
    ids=str,
)
def test_a_wrong_value_is_refused_by_name(values: dict[str, Any], found: str) -> None:
    from helm_python import HelmError

    with pytest.raises(HelmError, match=found):
        render(values)


@needs_kubectl
def test_a_patch_of_a_missing_object_is_refused(tmp_path: Path) -> None:
    """A renamed Deployment would silently lose its patches."""
    shutil.copytree(KUSTOMIZE, tmp_path / "k")
    patch = tmp_path / "k/overlays/dev/patch-deployment.yaml"
    patch.write_text(patch.read_text().replace("name: stepwell\n", "name: stepwel\n", 1))

    done = kustomize(patch.parent)

    assert done.returncode != 0
    assert "no matches" in done.stderr


@needs_helm
def test_a_setting_reaches_the_service_as_it_was_written() -> None:
    [found] = pod(by_name(render(ALL_VALUES)))["containers"]
    env = {one["name"]: one.get("value") for one in found["env"]}

    assert (env["STEPWELL_LOG_FORMAT"], env["STEPWELL_MAX_BODY_BYTES"]) == ("json", "16777216")
    assert (env["STEPWELL_WATCH_MODELS"], env["STEPWELL_MAX_WAIT_MS"]) == ("true", "0.5")


@needs_helm
def test_the_grace_period_follows_the_drain() -> None:
    long = pod(by_name(render({"drainSeconds": 60, "preStopSeconds": 20})))

    assert long["terminationGracePeriodSeconds"] == 95
    assert long["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"] == 20


def test_the_schema_has_every_setting_that_the_chart_does_not_set() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())

    assert set(schema["properties"]["settings"]["properties"]) == setting_groups().keys() - OWN_VALUES


def test_the_pods_are_restricted() -> None:
    """As the level `restricted` of the pod security standards requires, and read-only besides."""
    for spec in (SERVICE, REDIS):
        [one] = spec["containers"]
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert one["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert spec["automountServiceAccountToken"] is False


def test_the_pods_user_is_that_of_the_image() -> None:
    [*_, user] = re.findall(r"^USER (\d+):\d+$", (REPOSITORY / "docker/Dockerfile").read_text(), re.MULTILINE)

    assert SERVICE["securityContext"]["runAsUser"] == int(user)
    assert REDIS["securityContext"]["runAsUser"] == int(container("redis")["user"].partition(":")[0])


def test_the_service_starts_as_in_compose_from_the_image_of_its_version() -> None:
    assert SERVICE_CONTAINER["args"] == container("service")["command"]
    assert SERVICE_CONTAINER["image"] == f"stepwell:{version()}"


def test_kubernetes_sets_no_setting_by_accident() -> None:
    """For a Service named `stepwell` it would set STEPWELL_PORT to an address."""
    assert SERVICE["enableServiceLinks"] is False


def test_the_grace_period_is_longer_than_the_hook_and_the_drain() -> None:
    hook = SERVICE_CONTAINER["lifecycle"]["preStop"]["sleep"]["seconds"]

    assert SERVICE["terminationGracePeriodSeconds"] >= hook + default_of("drain_s") + 10


def test_every_variable_of_the_pod_is_a_setting() -> None:
    names = {one["name"].removeprefix(PREFIX).lower() for one in SERVICE_CONTAINER["env"]}

    assert names <= OWN_VALUES <= setting_groups().keys()


def test_redis_of_the_development_overlay_has_the_settings_of_compose() -> None:
    command = REDIS_CONTAINER["args"]
    options = dict(zip(command[1::2], command[2::2], strict=True))
    lines = (REPOSITORY / "docker/redis.conf").read_text().splitlines()
    named = {line.split()[0] for line in lines if line and not line.startswith("#")}

    assert {name.removeprefix("--") for name in options} == named | {"maxmemory"}
    assert options["--maxmemory-policy"] == "noeviction"


def test_a_patch_removes_what_is_gone() -> None:
    old = {"a": 1, "env": [{"name": "x", "value": 1}, {"name": "y", "value": 2}]}

    assert difference(old, {"env": [{"name": "y", "value": 3}]}) == {
        "a": None,
        "env": [{"name": "y", "value": 3}, {"$patch": "delete", "name": "x"}],
    }


@needs_kubectl
def test_the_overlay_of_the_page_changes_what_it_names(tmp_path: Path) -> None:
    [text, _] = [block for block in BLOCKS if "kind: Kustomization" in block]
    objects = of_own_overlay(tmp_path, text)
    [found] = pod(objects)["containers"]

    assert found["image"] == "registry.example.com/stepwell-with-models:7"
    assert {"name": "STEPWELL_LOG_FORMAT", "value": "json"} in found["env"]
    assert objects["NetworkPolicy", "stepwell"]["spec"]["egress"][1]["ports"][0]["port"] == 6380
    assert {one["metadata"]["namespace"] for one in objects.values()} == {"stepwell"}


@needs_kubectl
@needs_helm
def test_the_overlay_of_the_page_with_grpc_gives_the_objects_of_the_chart_which_open_its_port(tmp_path: Path) -> None:
    [_, text] = [block for block in BLOCKS if "kind: Kustomization" in block]
    objects = by_name(render({"settings": {"grpc_port": 8001}}))
    [found] = pod(objects)["containers"]
    [rule] = objects["NetworkPolicy", "stepwell"]["spec"]["ingress"]

    assert of_own_overlay(tmp_path, text) == objects
    assert found["ports"][1] == {"name": "grpc", "containerPort": 8001}
    assert {"name": "STEPWELL_GRPC_PORT", "value": "8001"} in found["env"]
    assert objects["Service", "stepwell"]["spec"]["ports"][1]["targetPort"] == "grpc"
    assert [one["port"] for one in rule["ports"]] == ["http", "grpc"]


@needs_helm
def test_the_values_of_the_page_are_accepted() -> None:
    [text] = [block for block in BLOCKS if block.startswith("image:")]
    objects = by_name(render(yaml.safe_load(text)))

    assert objects["HorizontalPodAutoscaler", "stepwell"]["spec"]["maxReplicas"] == 20
    assert objects["NetworkPolicy", "stepwell"]["spec"]["egress"][1]["ports"][0]["port"] == 6380


@needs_schemas
def test_the_autoscaler_of_the_page_fits_the_schemas() -> None:
    [found] = [yaml.safe_load(block) for block in BLOCKS if "kind: HorizontalPodAutoscaler" in block]

    check_schemas([found], VERSIONS[-1])


def test_the_queries_of_the_page_use_metrics_of_the_service() -> None:
    [scaled] = [yaml.safe_load(block) for block in BLOCKS if "kind: ScaledObject" in block]
    queries = [trigger["metadata"]["query"] for trigger in scaled["spec"]["triggers"]]

    assert {metric.name for metric in used_in(queries)} == {"stepwell_steps_total", "stepwell_queue_rows"}


@needs_kubectl
@needs_helm
@pytest.mark.parametrize("name", COMPONENTS)
def test_a_component_adds_what_the_chart_does(tmp_path: Path, name: str) -> None:
    kustomization = {"resources": ["../dev"], "components": [f"../../components/{name}"]}
    objects = by_name(render(OVERLAYS["dev"] | {name: {"enabled": True}}))

    assert of_own_overlay(tmp_path, json.dumps(kustomization)) == objects


@needs_helm
@pytest.mark.parametrize("name", COMPONENTS)
def test_a_client_of_the_service_runs_as_in_compose(name: str) -> None:
    [one] = by_name(render(CLIENTS))["Deployment", f"stepwell-{name}"]["spec"]["template"]["spec"]["containers"]
    own = container(name)

    assert one["image"] == f"{own['image']}:{version()}"
    assert one["args"] == [*own["command"], "--metrics-host", "0.0.0.0"]
    assert one["resources"]["limits"]["memory"] == own["deploy"]["resources"]["limits"]["memory"].replace("m", "Mi")
    assert one["securityContext"] == SERVICE_CONTAINER["securityContext"]


@needs_helm
def test_metrics_of_the_clients_are_read_where_those_of_the_service_are() -> None:
    kinds = {key for key in by_name(render(CLIENTS)) if key[0].endswith("Monitor")}

    assert kinds == {
        ("ServiceMonitor", "stepwell"), ("PodMonitor", "stepwell-connect"), ("PodMonitor", "stepwell-alert"),
    }  # fmt: skip


def of_own_overlay(folder: Path, kustomization: str) -> Objects:
    """Return the objects of an overlay with this file, beside those of the repository."""
    shutil.copytree(KUSTOMIZE, folder / "k")
    own = folder / "k/overlays/own"
    own.mkdir()
    (own / "kustomization.yaml").write_text(kustomization)
    done = kustomize(own)
    assert done.returncode == 0, done.stderr
    return by_name(list(yaml.safe_load_all(done.stdout)))


def check_schemas(objects: list[dict[str, Any]], kubernetes: str) -> None:
    """Check objects as an API server of this version would, without unknown fields.

    Raises:
        kubernetes_validate.ValidationError: An object does not fit.
    """
    import kubernetes_validate

    own = [one for one in objects if one["apiVersion"] not in OTHERS]
    assert own
    for one in own:
        kubernetes_validate.validate(one, kubernetes, strict=True)
